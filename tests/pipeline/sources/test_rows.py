import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from im2sp.pipeline.decoding.images import read_image
from im2sp.pipeline.sources import SourceError, SourceItem, list_source
from support.sources import keys_of, png_bytes, write


def write_tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


# Karpathy files


def karpathy(path: Path, *entries: object) -> Path:
    path.write_text(json.dumps({"dataset": "test", "images": entries}))
    return path


def entry(filename: str, split: str = "train", *captions: str, **more) -> dict:
    sentences = [{"raw": text, "tokens": []} for text in captions]
    return {"filename": filename, "split": split, "sentences": sentences, **more}


def test_karpathy_brings_captions_and_splits(tmp_path):
    write(tmp_path / "images", "b.jpg", "a.jpg", "val2014/c.jpg")
    path = karpathy(
        tmp_path / "dataset_x.json",
        entry("b.jpg", "train", "Two dogs .", "dogs"),
        entry("a.jpg", "restval"),
        entry("c.jpg", "val", "é", filepath="val2014", cocoid=7),
        entry("gone.jpg", "test", "x"),
    )
    listing = list_source(path, image_root=tmp_path / "images")
    assert listing.kind == "karpathy"
    b, a, c, gone = listing.items
    assert (b.key, b.split, b.captions) == ("b", "train", ("Two dogs .", "dogs"))
    assert (a.key, a.split, a.captions) == ("a", "restval", ())
    assert (c.key, c.name, c.image) == ("c", "val2014/c.jpg", tmp_path / "images/val2014/c.jpg")
    assert (gone.name, gone.error) == ("gone.jpg", "images[3]: no such image file")


def test_karpathy_filepath_that_leads_nowhere(tmp_path):
    write(tmp_path, "c.jpg")
    path = karpathy(tmp_path / "d.json", entry("c.jpg", "val", filepath="val2014"))
    assert list_source(path).items[0].image == tmp_path / "c.jpg"


def test_karpathy_images_in_a_tar(tmp_path):
    tar = write_tar(tmp_path / "i.tar", ("./a.png", png_bytes(9)), ("../b.png", b""))
    path = karpathy(tmp_path / "d.json", entry("a.png"), entry("../b.png"), entry("c.png"))
    a, b, c = list_source(path, image_root=tar).items
    assert a.image is not None
    assert read_image(a.image, name="a").getpixel((0, 0)) == (9, 0, 0)
    assert b.error == "images[1]: its name leaves the archive"
    assert c.error == "images[2]: no member c.png in i.tar"


def test_karpathy_names_that_clash(tmp_path):
    write(tmp_path, "x/a.jpg", "y/a.jpg", "x/b.jpg", "y/b.png")
    path = karpathy(
        tmp_path / "d.json",
        *[entry(name, filepath=where) for where, name in
          [("x", "a.jpg"), ("y", "a.jpg"), ("x", "b.jpg"), ("y", "b.png")]],
    )  # fmt: skip
    assert keys_of(path) == ["x/a", "y/a", "b.jpg", "b.png"]


def test_broken_karpathy_entries_are_rejects(tmp_path):
    write(tmp_path, "a.jpg", "b.jpg")
    path = karpathy(
        tmp_path / "d.json",
        entry("a.jpg", "train", "one"),
        "b.jpg",
        {"split": "train"},
        {"filename": "b.jpg", "split": "val", "sentences": ["text"]},
        {"filename": "b.jpg", "split": 3},
        entry("a.jpg", "val", "two"),
        entry("a.jpg", "train", "three"),
    )
    listing = list_source(path)
    assert listing.items[0].captions == ("one", "three")
    assert [item.error for item in listing.items[1:]] == [
        "images[1]: found str, expected an object",
        "images[2]: no filename",
        "images[3]: sentences must be a list of objects with a text under 'raw'",
        "images[4]: filepath and split must be text",
        "images[5]: split 'val', but 'train' in images[0] for the same sample",
    ]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", r"not JSON \(.*\); expected a Karpathy file, \{\"images\""),
        ("[" * 100_000, "not JSON"),
        ("[1]", "found list; expected a Karpathy file"),
        ('{"data": []}', r"found keys \['data'\]"),
        ('{"images": []}', "lists no images"),
        ('{"images": [{"filename": "a.jpg"}]}', r"none of its 1 images .* --image-root"),
    ],
)
def test_json_that_is_no_usable_karpathy_file(tmp_path, content, match):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(SourceError, match=rf"d\.json: .*{match}"):
        list_source(tmp_path / "d.json")


# Manifests


ROWS = [
    {"key": "k1", "image": "a.png", "caption": "one", "split": "train"},
    {"key": "", "image": "sub/b.png", "caption": "", "split": ""},
    {"key": "k1", "image": "a.png", "caption": 'two, with "quotes"\nand lines', "split": "train"},
    {"key": "k3", "image": "gone.png", "caption": "x", "split": "val"},
]


def write_manifest(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_kind_of_manifest_says_the_same(tmp_path, kind):
    write(tmp_path, "a.png", "sub/b.png")
    listing = list_source(write_manifest(tmp_path / f"m.{kind}", ROWS))
    assert listing.kind == kind
    first, second, gone = listing.items
    assert first == SourceItem(
        key="k1", image=tmp_path / "a.png", name="a.png", split="train",
        captions=("one", "two, with \"quotes\"\nand lines"),
    )  # fmt: skip
    assert second == SourceItem(key="sub/b", image=tmp_path / "sub/b.png", name="sub/b.png")
    assert gone.error is not None
    assert gone.error.endswith(": no such image file")


def test_image_root_and_absolute_paths(tmp_path):
    write(tmp_path / "root", "a.png")
    absolute = write(tmp_path / "else", "b.png") / "b.png"
    path = write_manifest(tmp_path / "m.jsonl", [{"image": "a.png"}, {"image": str(absolute)}])
    first, second = list_source(path, image_root=tmp_path / "root").items
    assert first.image == tmp_path / "root" / "a.png"
    assert second.image == absolute
    assert second.key == str(absolute)[1:].removesuffix(".png")


def test_broken_lines_are_rejects_that_name_their_line(tmp_path):
    write(tmp_path, "a.png", "b.png")
    lines = [
        b'\xef\xbb\xbf{"image": "a.png", "caption": ["one", "two"], "key": 17}',
        b"",
        b'{"image": ',
        b"[1]",
        b'{"key": "x"}',
        b'{"image": 5}',
        b'{"image": "ftp://example.org/a.png"}',
        b'{"image": "b.png", "caption": {"raw": "x"}}',
        b'{"image": "b.png", "caption": "\\ud800"}',
        b'{"image": "b\\u0000.png"}',
        b'{"image": "b.png", "key": "17"}',
        b'{"image": "a.png", "key": "17", "split": "val"}',
        b'\xff{"image": "b.png"}',
        b'{"image": "' + b"n" * 5000 + b'.png"}',
        b'{"image": "b.png", "captions": ["last"], "more": 1}',
    ]
    (tmp_path / "m.jsonl").write_bytes(b"\n".join(lines))
    listing = list_source(tmp_path / "m.jsonl")
    good = [item for item in listing.items if not item.error]
    assert [(item.key, item.captions, item.split) for item in good] == [
        ("17", ("one", "two"), "val"),
        ("b", ("last",), ""),
    ]
    errors = [item.error for item in listing.items if item.error]
    assert all(item.key and item.name for item in listing.items)
    expected = [
        "line 3: not JSON: ",
        "line 4: found list, expected an object",
        "line 5: no image path",
        "line 6: image is int, expected a path",
        "line 7: ftp://example.org/a.png: not a URL that is read; expected one of "
        "http://, https://, s3://, gs://, hf://",
        "line 8: caption must be text or a list of texts",
        "line 9: the caption is not valid UTF-8 text",
        "line 10: the image path holds a zero byte",
        "line 11: key '17' has another image in line 1: a.png",
        "line 13: not JSON: ",
        "line 14: image file cannot be looked up: File name too long",
    ]
    assert len(errors) == len(expected)
    for error, start in zip(errors, expected, strict=True):
        assert error is not None
        assert error.startswith(start)


def test_broken_csv_rows_are_rejects(tmp_path):
    write(tmp_path, "a.png", "b.png")
    text = b'image,caption\na.png,"x"\na.png,x,y,z\nb.png\n"a.png"bad,x\nb.png,caf\xe9\nb.png,z\n'
    (tmp_path / "m.csv").write_bytes(text)
    listing = list_source(tmp_path / "m.csv")
    assert [item.error for item in listing.items if item.error] == [
        "line 3: 4 fields, the header has 2",
        "line 5: not CSV: ',' expected after '\"'",
        "line 6: the caption is not valid UTF-8 text",
    ]
    assert [item.captions for item in listing.items if not item.error] == [("x",), ("z",)]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("m.jsonl", b"", r"found columns \[\]; expected an 'image' column"),
        ("m.jsonl", b'{"name": "a"}\n', r"found columns \['name'\]; expected an 'image'"),
        ("m.jsonl", b"oops\n", r"found columns \[\]"),
        ("m.csv", b"", r"found columns \[\]"),
        ("m.csv", b"image;caption\n", r"found columns \['image;caption'\]"),
        ("m.csv", b"image,caption\n", "holds no rows"),
        ("m.parquet", b"PAR1", "not a Parquet file"),
        ("m.txt", b"", r"unknown kind of source: \.txt; expected a folder"),
        ("m.tar.gz", b"", r"unknown kind of source: \.gz;"),
    ],
)
def test_manifests_that_cannot_be_used(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name}: .*{match}"):
        list_source(tmp_path / name)


def test_parquet_without_an_image_column(tmp_path):
    path = write_manifest(tmp_path / "m.parquet", [{"name": "a.png"}])
    with pytest.raises(SourceError, match=r"found columns \['name'\]; expected an 'image' column"):
        list_source(path)


def test_parquet_lists_of_captions_and_odd_types(tmp_path):
    write(tmp_path, "a.png")
    rows = [{"image": "a.png", "caption": ["x", "y"], "key": 3, "split": None}]
    (item,) = list_source(write_manifest(tmp_path / "m.parquet", rows)).items
    assert (item.key, item.captions, item.split) == ("3", ("x", "y"), "")
    rows = [{"image": 7, "caption": "x"}]
    (item,) = list_source(write_manifest(tmp_path / "n.parquet", rows)).items
    assert item.error == "row 0: image is int, expected a path"


def test_the_shared_karpathy_file(shared_data):
    path = shared_data / "flickr8k" / "dataset_flickr8k.json"
    listing = list_source(path, image_root=shared_data / "flickr8k" / "images-val-0.tar")
    good = [item for item in listing.items if not item.error]
    assert len(listing.items) == 7000
    assert len(good) == 1000
    assert {item.split for item in good} == {"val"}
    assert all(len(item.captions) == 5 for item in good)
    with pytest.raises(SourceError, match="none of its 7000 images can be used in"):
        list_source(path)
