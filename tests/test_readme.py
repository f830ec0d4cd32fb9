"""What the README says works: its commands and programs run, its flags and links exist."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from support.guides import blocks

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BIN = Path(sys.executable).parent
COMMANDS = [
    "im2sp-evaluate",
    "im2sp-info",
    "im2sp-speak",
    "im2sp-tokenize",
    "im2sp-train",
    "im2sp-verify",
    "tools/bitcount.py",
    "tools/convert.py export",
    "tools/convert.py npy",
    "tools/convert.py split",
    "tools/flickr8k_spoken.py",
    "tools/listening_test.py build",
    "tools/listening_test.py score",
    "tools/reconstruct.py",
]


def run(command, folder, **variables):
    return subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@cache
def flags_of(command):
    """Flags that a command's --help names."""
    start = [sys.executable, *command.split()] if ".py" in command else [BIN / command]
    asked = run([*start, "--help"], ROOT)
    assert asked.returncode == 0, asked.stderr
    return set(re.findall(r"--[a-z][a-z-]*", asked.stdout))


def test_the_blocks_of_the_readme_run(tmp_path):
    for folder in ("docs", "tools"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    cache_dir = str(tmp_path / "cache")
    num_run = 0
    for language, line, text in blocks(README, "sh", "python"):
        start = ["bash", "-euo", "pipefail", "-c"] if language == "sh" else [sys.executable, "-c"]
        done = run([*start, text], tmp_path, HF_HOME=cache_dir, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, f"README.md:{line}:\n{text}\n{done.stdout}\n{done.stderr}"
        num_run += 1
    assert num_run >= 6
    assert (tmp_path / "build/sheet.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_in_the_blocks_exist(command):
    text = "".join(block for _, _, block in blocks(README, "sh", "console"))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if command in line]
    assert lines, f"the README never shows {command}"
    used = {flag for line in lines for flag in re.findall(r"--[a-z][a-z-]*", line)}
    assert used <= flags_of(command)


def test_flags_in_the_prose_exist():
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)
    used = {f for code in re.findall(r"`([^`]+)`", prose) for f in re.findall(r"--[a-z-]+", code)}
    known = set().union(*(flags_of(command) for command in COMMANDS))
    assert used
    assert used <= known


def test_the_first_40_lines_lead_from_images_to_shards():
    first = "\n".join(README.splitlines()[:40])
    for wanted in ("im2sp-tokenize", "im2sp-verify", "tools/bitcount.py", "**Install.**", "0.8"):
        assert wanted in first


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_links_lead_somewhere(guide):
    text = guide.read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (guide.parent / link).exists()] == []


def test_files_that_the_guides_name_exist():
    for guide in GUIDES:
        named = re.findall(
            r"`((?:docs|tools|tests|pipeline|shards)/[\w./-]+\.\w+)`", guide.read_text()
        )
        assert [name for name in named if not (ROOT / name).exists()] == [], guide.name


def test_tests_that_the_cases_name_exist():
    text = (ROOT / "docs/cases.md").read_text("utf-8")
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", text))
    rows = re.findall(r"^\| (?!no\.|---).*\|$", text, re.M)
    assert all("::" in row or "continuous integration" in row for row in rows)
    missing = [
        f"{path}::{name}"
        for path, name in sorted(named)
        if f"\ndef {name}(" not in (ROOT / "tests" / path).read_text("utf-8")
    ]
    assert missing == []
    numbers = {word for row in rows for word in row.split("|")[1].replace(",", " ").split()}
    assert numbers == {*map(str, range(1, 61)), *(f"F{n}" for n in range(1, 14))}


def test_the_readme_is_the_packages_description():
    assert 'readme = "README.md"' in (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"@@|\bXX", README)
