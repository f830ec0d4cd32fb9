import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from im2sp.tools.make_demo_images import SCENES, main, paint

DOCS = Path(__file__).resolve().parents[2] / "docs"
SHIPPED = sorted((DOCS / "demo-images").glob("*.jpg"))


def test_a_dozen_scenes_are_shipped_and_small():
    assert [p.stem for p in SHIPPED] == sorted(SCENES)
    assert len(SHIPPED) == 12
    assert sum(p.stat().st_size for p in SHIPPED) < 400_000


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_pictures_are_what_the_program_paints(path):
    shipped, painted = Image.open(path), paint(path.stem)
    assert shipped.size == painted.size
    # JPEG loses a little, and so may another libjpeg or font engine.
    difference = np.asarray(shipped, np.float64) - np.asarray(painted, np.float64)
    assert np.sqrt(np.mean(difference**2)) < 12


def test_main_writes_every_scene(tmp_path, monkeypatch, capsys):
    one = dict([next(iter(SCENES.items()))])
    monkeypatch.setattr("im2sp.tools.make_demo_images.SCENES", one)
    monkeypatch.setattr("sys.argv", ["make_demo_images.py", "--out", str(tmp_path / "new")])
    main()
    assert [p.stem for p in (tmp_path / "new").iterdir()] == list(one)
    assert "bytes" in capsys.readouterr().out


def test_captions_name_each_picture_once():
    rows = [json.loads(line) for line in (DOCS / "demo-captions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [p.name for p in SHIPPED]
    assert {row["split"] for row in rows} == {"train", "val"}
    assert all(row["caption"] for row in rows)
