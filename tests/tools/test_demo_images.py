import json
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
SHIPPED = sorted((DOCS / "demo-images").glob("*.jpg"))


def test_a_dozen_images_are_shipped_and_small():
    assert len(SHIPPED) == 12
    assert sum(p.stat().st_size for p in SHIPPED) < 400_000


def test_captions_name_each_image_once():
    rows = [json.loads(line) for line in (DOCS / "demo-captions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [p.name for p in SHIPPED]
    assert {row["split"] for row in rows} == {"train", "val"}
    assert all(row["caption"] for row in rows)
