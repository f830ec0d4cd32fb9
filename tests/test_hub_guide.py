"""docs/hub.md: its program and its URL read a dataset, its uploads exist in the client."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi

from im2sp.shards import Manifest
from im2sp.shards.writing.card import write_card
from support.datasets import make_samples, write_dataset
from support.guides import blocks
from support.servers import web_server

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs/hub.md").read_text("utf-8")


def test_the_program_reads_a_local_dataset(tmp_path):
    folder = tmp_path / "build/captioned"
    folder.mkdir(parents=True)
    write_dataset(folder, make_samples(6))
    write_card(folder, Manifest.read(folder))
    ((_, _, program),) = blocks(GUIDE, "python")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "ordner/bild-1-ä val (28, 28) ['ein Bild']" in done.stdout.splitlines()
    assert len(done.stdout.splitlines()) == 6


def test_a_repository_is_read_by_url(tmp_path):
    write_dataset(tmp_path, make_samples(6))
    (name,) = re.findall(r'ShardDataset\("hf://datasets/(.*?)"\)', GUIDE)
    with web_server() as site:
        files = [path for path in tmp_path.iterdir() if path.is_file()]
        tree = [{"type": "file", "oid": "1" * 40, "path": path.name, "size": path.stat().st_size}
                for path in files]  # fmt: skip
        site.files[f"api/datasets/{name}"] = b'{"id": "USER/NAME", "siblings": []}'
        site.files[f"api/datasets/{name}/tree/main"] = json.dumps(tree).encode()
        for path in files:
            site.files[f"datasets/{name}/resolve/main/{path.name}"] = path.read_bytes()
        done = subprocess.run(
            [sys.executable, "-m", "im2sp.shards.cli", f"hf://datasets/{name}"],
            cwd=ROOT,
            env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": site.url},
            capture_output=True,
            text=True,
        )
    assert done.stdout.splitlines()[-1].startswith(f"hf://datasets/{name}: 2 shards, 6 samples")


def test_the_uploads_exist():
    hf = Path(sys.executable).parent / "hf"
    shown = subprocess.run([hf, "upload", "--help"], capture_output=True, text=True).stdout
    (command,) = re.findall(r"^\$ (hf upload .*)$", GUIDE, re.M)
    assert set(re.findall(r"--[a-z-]+", command)) <= set(re.findall(r"--[a-z-]+", shown))
    for method in (HfApi.create_repo, HfApi.upload_folder):
        call = re.search(rf"api\.{method.__name__}\((.*?)\)$", GUIDE, re.M | re.S)
        flags = set(re.findall(r"(\w+)=", call[1]))
        assert flags
        assert flags <= set(inspect.signature(method).parameters)
