"""Columns, quotes and odd values of source lists, and COCO's own caption files."""

import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from im2sp.pipeline.sources import SourceError, list_source
from im2sp.pipeline.sources.items import split_name
from support.sources import write

IMAGES = ["a.png", "b.png", "c.png"]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, *IMAGES)


def samples(path, **options):
    items = list_source(path, **options).items
    return [(i.key, i.captions, i.split) for i in items if not i.error]


def errors(path):
    return [item.error for item in list_source(path).items if item.error]


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "header",
    ["image,caption,split", "image, caption, split", "Image , TEXT,Split", "path,sentence,split",
     "file_name,text,split", '"image", "caption", "split"'],
)  # fmt: skip
def test_headers_are_trimmed_case_folded_and_known_by_alias(folder, header):
    path = folder / "m.csv"
    space = " " if ", " in header else ""
    path.write_text(f"{header}\na.png,{space}one,{space}train\nb.png,{space}two,{space}val\n")
    assert samples(path) == [("a", ("one",), "train"), ("b", ("two",), "val")]
    assert list_source(path).notes == ()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_that_are_not_used_are_named(folder, kind):
    path = folder / f"m.{kind}"
    if kind == "jsonl":
        jsonl(path, {"image": "a.png", "url": "x"}, {"image": "b.png", "blip": "a dog", "url": 3})
    elif kind == "csv":
        path.write_text("image,url,blip\na.png,x,\nb.png,3,a dog\n")
    else:
        rows = [{"image": "a.png", "url": "x", "blip": None}, {"image": "b.png", "blip": "a dog"}]
        pq.write_table(pa.Table.from_pylist(rows), path)
    assert list_source(path).notes == (
        "columns not used: 'url', 'blip' (use one with --columns FIELD=COLUMN)",
    )
    listing = list_source(path, columns={"caption": " BLIP"})
    assert listing.items[1].captions == ("a dog",)
    assert listing.notes == ("columns not used: 'url' (use one with --columns FIELD=COLUMN)",)


def test_a_chosen_column_comes_before_the_known_names(folder):
    path = jsonl(folder / "m.jsonl", {"image": "a.png", "caption": "bad", "text": "good"})
    assert samples(path, columns={"caption": "text"}) == [("a", ("good",), "")]
    with pytest.raises(SourceError, match=r"no column 'alt' for caption \(--columns\); found col"):
        list_source(path, columns={"caption": "alt"})
    with pytest.raises(
        SourceError, match="--columns alt=text: no field 'alt'; expected one of key"
    ):
        list_source(path, columns={"alt": "text"})
    with pytest.raises(SourceError, match=r"--columns caption=text applies to a \.jsonl"):
        list_source(folder, columns={"caption": "text"})


def test_an_alias_may_name_images_or_clips(folder):
    (folder / "x.wav").touch()
    path = jsonl(folder / "m.jsonl", {"path": "x.wav", "sentence": "hello"})
    (item,) = list_source(path).items
    assert (item.image, item.utterances[0].text) == (None, "hello")
    path = jsonl(folder / "n.jsonl", {"file": "a.png", "text": "one"})
    assert samples(path) == [("a", ("one",), "")]
    path = jsonl(folder / "o.jsonl", {"path": "a.png", "wav": "x.wav", "text": "said"})
    (item,) = list_source(path).items
    assert (item.image, item.utterances[0].text) == (folder / "a.png", "said")


def test_an_unclosed_quote_costs_its_line(folder):
    path = folder / "m.csv"
    path.write_text(
        'image,caption\na.png,"two\nlines"\na.png,"a sign says stop\nb.png,second\n'
        'c.png,third "quoted" word\na.png,fourth\n'
    )
    assert [captions for _, captions, _ in samples(path)] == [
        ("two\nlines", "fourth"),
        ("second",),
        ('third "quoted" word',),
    ]
    (error,) = errors(path)
    assert error.startswith("line 4: not CSV: a quote that opens here is not closed")


def test_many_unclosed_quotes_lose_nothing(folder):
    path = folder / "m.csv"
    lines = [f'a.png,"x{n}' if n % 3 == 0 else f"b.png,{n}" for n in range(300)]
    path.write_text("image,caption\n" + "\n".join(lines) + "\n")
    listing = list_source(path)
    num_captions = sum(len(item.captions) for item in listing.items)
    assert num_captions + len(errors(path)) == 300


def test_numbers_that_pandas_made_floats(folder):
    path = folder / "m.jsonl"
    path.write_text(
        '{"image": "a.png", "key": 1.0, "caption": NaN, "split": 0}\n'
        '{"image": "b.png", "key": NaN, "caption": ["x", null]}\n'
        '{"image": "c.png", "key": 2.5, "split": NaN}\n'
    )
    assert samples(path) == [("1", (), "0"), ("b", ("x",), ""), ("2.5", (), "")]
    rows = {"image": ["a.png", "b.png"], "key": pa.array([7.0, None], pa.float64())}
    pq.write_table(pa.table(rows), folder / "m.parquet")
    assert samples(folder / "m.parquet") == [("7", (), ""), ("b", (), "")]


def test_splits_by_their_usual_names():
    names = ["validation", "Valid", "dev ", "val", "Train", "TEST", "restval", "", " fold 3 "]
    expected = ["val", "val", "val", "val", "train", "test", "restval", "", "fold 3"]
    assert [split_name(name) for name in names] == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (unicodedata.normalize("NFD", "é.png"), "é.png is there, in another Unicode form"),
        ("A.PNG", "a.png is there, in other letter case"),
        ("SUB/d.png", "sub/d.png is there, in other letter case"),
        ("sub\\d.png", "sub/d.png is there, write / for \\"),
        (".\\Sub\\D.png", "sub/d.png is there, write / for \\, in other letter case"),
        ("sub\\gone.png", ""),
    ],
)
def test_a_path_that_is_spelt_otherwise_is_explained(folder, name, hint):
    write(folder, "é.png", "sub/d.png")
    path = jsonl(folder / "m.jsonl", {"image": "a.png"}, {"image": name})
    (error,) = errors(path)
    assert error.startswith("line 2: no such image file")
    assert hint in error


# COCO's captions_*.json


def coco(path, **more):
    images = [{"id": n, "file_name": name} for n, name in enumerate(IMAGES)]
    captions = [(0, "one"), (2, "three"), (0, "uno\n"), (9, "nobody's"), (1, None)]
    annotations = [{"id": 0, "image_id": n, "caption": text} for n, text in captions]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations} | more))
    return path


def test_cocos_own_caption_file_is_a_source(folder):
    path = coco(folder / "captions_val2017.json")
    assert list_source(path).kind == "coco"
    assert samples(path) == [
        ("a", ("one", "uno"), "val"),
        ("b", (), "val"),
        ("c", ("three",), "val"),
    ]
    assert errors(path) == ["annotations[3]: no image has the id 9", "annotations[4]: no caption"]


def test_cocos_folders_are_known(tmp_path):
    write(tmp_path / "train2017", *IMAGES)
    path = coco(tmp_path / "annotations" / "captions_train2017.json")
    assert [key for key, _, _ in samples(path)] == ["a", "b", "c"]
    assert [key for key, _, _ in samples(path, image_root=tmp_path / "train2017")] == [*"abc"]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"annotations": [{"image_id": 0, "bbox": []}]}, "its annotations hold no captions"),
        ({"images": []}, r"found keys \['annotations', 'images', 'info'\]; expected COCO's"),
        ({"annotations": 3}, "expected COCO's"),
        ({"images": [{"id": 1, "file_name": "z.png"}]}, "none of its .* --image-root"),
        ({"images": [{"id": [1], "file_name": "a.png"}, 7]}, "no id or no file_name"),
    ],
)
def test_other_annotation_files_are_named(folder, more, match):
    with pytest.raises(SourceError, match=match):
        list_source(coco(folder / "captions_train2014.json", **more))
