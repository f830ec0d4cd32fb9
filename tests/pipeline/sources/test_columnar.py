"""Parquet and Arrow tables with the content of images and clips."""

import json
import os
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from im2sp.pipeline.decoding.media import ByteRange, Cell, MediaError, read_bytes
from im2sp.pipeline.sources import SourceError, list_source
from im2sp.pipeline.sources.tables import split_of_file
from support.sources import png_bytes, write
from support.speech_sources import write_sound


def struct_of(*contents, paths=None):
    """Column of `{bytes, path}` structs."""
    paths = paths or [None] * len(contents)
    rows = [{"bytes": one, "path": path} for one, path in zip(contents, paths, strict=True)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write_parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def write_arrow(path, columns, rows_per_batch=2, **options):
    table = pa.table(columns)
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows_per_batch)
    return path


@pytest.fixture(params=["parquet", "arrow"])
def table(request, tmp_path):
    """table(columns, name="t") -> path of a file with them."""
    writer = {"parquet": write_parquet, "arrow": write_arrow}[request.param]
    return lambda columns, name="t": writer(tmp_path / f"{name}.{request.param}", columns)


def content_of(items):
    return [read_bytes(item.image) for item in items]


def test_images_of_the_datasets_library(shared_data):
    listing = list_source(shared_data / "cases" / "hf.parquet")
    assert [item.key for item in listing.items][:2] == ["balloons", "checkered-floor"]
    assert listing.items[0].name == "row 0: balloons.jpg"
    assert listing.items[4].captions == ("oranges , apples and grapes lie on a wooden table",)
    assert [len(content) for content in content_of(listing.items)] == [
        *(11952, 13907, 29657, 8145, 16341),
    ]


def test_every_row_is_an_input(table):
    pngs = [png_bytes(value) for value in range(5)]
    paths = ["a/x.png", "a/x.png", None, "https://e.org/y.png", "z.png"]
    columns = {"image": struct_of(*pngs, paths=paths), "text": [*"pqrs", None], "n": [1] * 5}
    listing = list_source(table(columns))
    keys = ["000000", "000001", "000002", "https:/e.org/y", "z"]
    assert [item.key for item in listing.items] == keys
    assert [item.name for item in listing.items][1:3] == ["row 1: a/x.png", "row 2: image"]
    assert [item.captions for item in listing.items] == [("p",), ("q",), ("r",), ("s",), ()]
    assert listing.notes == ("columns not used: 'n' (use one with --columns FIELD=COLUMN)",)
    assert content_of(listing.items) == pngs
    assert content_of(reversed(listing.items)) == pngs[::-1]


def test_rows_without_content_name_a_file(table, tmp_path):
    write(tmp_path, "b.png")
    (tmp_path / "b.png").write_bytes(png_bytes(9))
    paths = ["a.png", "b.png", "gone.png", None]
    columns = {"image": struct_of(png_bytes(1), None, None, None, paths=paths)}
    a, b, gone, none = list_source(table(columns)).items
    assert content_of([a, b]) == [png_bytes(1), png_bytes(9)]
    assert b.image == tmp_path / "b.png"
    assert gone.error == "row 2: no such image file"
    assert none.error == "row 3: no image path"


def test_binary_columns_and_keys(table):
    columns = {"jpg": pa.array([png_bytes(1), png_bytes(2)]), "key": ["k1", "k1"]}
    first, second = list_source(table(columns | {"caption": [["a", "b"], []]})).items
    assert (first.key, first.name, first.captions) == ("k1", "row 0: image", ("a", "b"))
    assert second.error == "row 1: key 'k1' has another image in row 0: row 0: image"


def test_clips_in_a_table(table, tmp_path):
    write_sound(tmp_path, "a.wav", "b.flac")
    clips = [(tmp_path / name).read_bytes() for name in ("a.wav", "b.flac")]
    columns = {
        "path": ["clips/a.wav", "clips/b.flac"],  # that of Common Voice, which names no image
        "audio": struct_of(*clips, paths=["a.wav", None]),
        "sentence": ["one", "two"],
    }
    first, second = list_source(table(columns)).items
    assert (first.key, second.key) == ("a", "000001")
    assert [one.utterances[0].text for one in (first, second)] == ["one", "two"]
    assert [read_bytes(one.utterances[0].audio) for one in (first, second)] == clips
    columns["image"] = struct_of(png_bytes(1), png_bytes(2))
    first, _ = list_source(table(columns)).items
    assert first.image is not None
    assert first.utterances[0].name == "row 0: a.wav"


def test_columns_that_the_datasets_library_records(table):
    features = {
        "img": {"_type": "Image"},
        "label": {"_type": "ClassLabel"},
        "gone": {"_type": "Image"},
    }
    stored = {"huggingface": json.dumps({"info": {"features": features}})}
    plain = pa.table(
        {"path": ["x.png"], "img": struct_of(png_bytes(3)), "pic": struct_of(png_bytes(4))}
    )
    path = table(plain.replace_schema_metadata(stored))
    assert content_of(list_source(path).items) == [png_bytes(3)]
    assert content_of(list_source(path, columns={"image": "pic"}).items) == [png_bytes(4)]


def test_row_groups_are_read_in_any_order(tmp_path):
    contents = [os.urandom(50 + index) for index in range(100)]
    columns = {"image": struct_of(*contents)}
    path = write_parquet(tmp_path / "t.parquet", columns, row_group_size=30, data_page_size=100)
    items = list_source(path).items
    for index in np.random.default_rng(0).permutation(100):
        assert read_bytes(items[index].image) == contents[index]
    with pytest.raises(MediaError, match=r"t\.parquet has 100 rows; no row 100"):
        read_bytes(Cell(path=path, row=100, column="image.bytes"))
    with pytest.raises(MediaError, match="cannot be read: No such file"):
        read_bytes(Cell(path=tmp_path / "gone.parquet", row=0, column="image.bytes"))


def test_a_file_without_statistics_lists_its_empty_rows(tmp_path):
    columns = {"image": struct_of(png_bytes(1), None)}
    path = write_parquet(tmp_path / "t.parquet", columns, write_statistics=False)
    first, second = list_source(path).items
    assert (first.error, second.error) == (None, "row 1: no image path")
    with pytest.raises(MediaError, match=r"no content: image\.bytes is empty in row 1"):
        read_bytes(Cell(path=path, row=1, column="image.bytes"))


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a.png"] * 200, "caption": [LONG] * 200}, "values of more than 64,[0-9,]+ byt"),
        ({"image": ["a"] * 20, "captions": [[LONG] * 10] * 20}, "values of more than 64,"),
        ({"image": struct_of(*[b"x"] * 200, paths=[LONG] * 200)}, "values of more than 64,"),
        ({"image": pa.nulls(3_000_000, pa.string())}, "3,000,000 rows in [0-9,]+ bytes"),
        (
            {"image": ["a.png"], "caption": [LONG * 70]},
            r"more than 64,[0-9,]+ bytes of values in the column caption, the limit for a file of",
        ),
        ({"image": ["a"], "captions": [[None] * 9_000_000]}, "more than 64,.* in the column capt"),
    ],
)
def test_small_parquet_files_of_huge_values(tmp_path, columns, message):
    path = write_parquet(tmp_path / "t.parquet", columns, compression="zstd")
    assert path.stat().st_size < 40_000
    with pytest.raises(SourceError, match=message):
        list_source(path)


def test_pages_that_the_footer_understates(tmp_path):
    """Pages are read by their own headers, so these are summed up."""
    columns = {"image": ["a.png"], "caption": [LONG * 70]}
    options = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    path = write_parquet(tmp_path / "t.parquet", columns, **options)
    data = path.read_bytes()
    size_bytes = pq.read_metadata(path).row_group(0).column(1).total_uncompressed_size
    stated, small = varint(2 * size_bytes), varint(2 * 1000)
    assert data.count(stated) == 1
    path.write_bytes(data.replace(stated, small[:-1] + b"\x8f\x80\x00"))
    assert pq.read_metadata(path).row_group(0).column(1).total_uncompressed_size < 10_000
    with pytest.raises(
        SourceError, match="more than 64,[0-9,]+ bytes of values in the column capt"
    ):
        list_source(path)


def varint(value):
    """A number of Thrift's compact protocol."""
    parts = []
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_encodings_without_a_dictionary(tmp_path, encoding):
    columns = {"image": struct_of(png_bytes(1), png_bytes(2)), "caption": ["a", "b"]}
    names = ("image.bytes", "image.path", "caption")
    options = {"use_dictionary": False, "column_encoding": dict.fromkeys(names, encoding)}
    items = list_source(write_parquet(tmp_path / "t.parquet", columns, **options)).items
    assert [item.captions for item in items] == [("a",), ("b",)]
    assert content_of(items) == [png_bytes(1), png_bytes(2)]


def test_values_that_are_differences(tmp_path):
    """Each value repeats the one before it; one is a megabyte, and all are 200 of them."""
    image = [f"{LONG}{number}" for number in range(200)]
    options = {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY"}}
    path = write_parquet(tmp_path / "t.parquet", {"image": image}, compression="zstd", **options)
    assert path.stat().st_size < 40_000
    before = pa.total_allocated_bytes()
    with pytest.raises(SourceError, match="values of more than 64,[0-9,]+ bytes"):
        list_source(path)
    assert pa.total_allocated_bytes() - before < 64_000_000
    captions = {"image": ["a"], "captions": [image]}
    options["column_encoding"] = {"captions.list.element": "DELTA_BYTE_ARRAY"}
    path = write_parquet(tmp_path / "l.parquet", captions, compression="zstd", **options)
    with pytest.raises(
        SourceError, match="more than 64,[0-9,]+ bytes of values in the column capt"
    ):
        list_source(path)


def test_damaged_page_headers(tmp_path):
    """No cut or change of the headers is more than a refusal."""
    columns = {"image": ["a.png"] * 9, "captions": [["b"]] * 9}
    path = write_parquet(tmp_path / "t.parquet", columns)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    data = path.read_bytes()
    changes = [(at, byte) for at in range(4, 4 + chunk.total_compressed_size)
               for byte in (0, 0x7F, 0xFF)]  # fmt: skip
    num_read = 0
    for at, byte in changes:
        path.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
        with suppress(SourceError):
            list_source(path)
            num_read += 1
    assert 0 < num_read < len(changes)


def test_a_repeated_content_is_read_one_by_one(tmp_path):
    """Sixteen values of 4 MB, stored once."""
    contents = [LONG.encode() * 4] * 16
    options = {"dictionary_pagesize_limit": 1 << 25}
    path = write_parquet(tmp_path / "t.parquet", {"image": struct_of(*contents)}, **options)
    before = pa.total_allocated_bytes()
    assert len(read_bytes(Cell(path=path, row=7, column="image.bytes"))) == 4_000_000
    assert pa.total_allocated_bytes() - before < 32_000_000
    (tmp_path / "t.parquet").unlink()
    contents = [LONG.encode() * 70]
    write_parquet(path, {"image": struct_of(*contents)}, compression="zstd")
    with pytest.raises(
        MediaError, match="row 0 of t.parquet cannot be read: more than 64,.* of values"
    ):
        read_bytes(Cell(path=path, row=0, column="image.bytes"))


def test_damage_is_named(tmp_path):
    contents = [os.urandom(3000) for _ in range(20)]
    columns = {"image": struct_of(*contents)}
    path = write_parquet(tmp_path / "t.parquet", columns, compression="zstd")
    items = list_source(path).items
    data = bytearray(path.read_bytes())
    data[8 : len(data) // 2] = bytes(len(data) // 2 - 8)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"row 3 of t\.parquet cannot be read: "):
        read_bytes(items[3].image)
    path.write_bytes(data[:100])
    with pytest.raises(SourceError, match=r"t\.parquet: not a Parquet file"):
        list_source(path)
    path = write_arrow(tmp_path / "t.arrow", columns, rows_per_batch=5)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(SourceError, match=r"t\.arrow: damaged after row 10"):
        list_source(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match=r"t\.arrow: not a Arrow file"):
        list_source(path)


@pytest.mark.parametrize("is_file", [False, True])
def test_compressed_arrow_files_are_refused_before_they_are_expanded(tmp_path, is_file):
    table = pa.table({"image": struct_of(*[bytes(1000)] * 4), "caption": ["a" * (1 << 24)] * 4})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    path, new = tmp_path / "t.arrow", pa.ipc.new_file if is_file else pa.ipc.new_stream
    with new(path, table.schema, options=options) as writer:
        writer.write_table(table)
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(SourceError, match=r"t\.arrow: its record batches are compressed"):
        list_source(path)
    assert pa.default_memory_pool().max_memory() == before


def test_the_file_format_of_arrow(tmp_path):
    table = pa.table({"image": struct_of(*map(png_bytes, range(5)))})
    with pa.ipc.new_file(tmp_path / "t.arrow", table.schema) as writer:
        writer.write_table(table, 2)
    items = list_source(tmp_path / "t.arrow").items
    assert all(isinstance(item.image, ByteRange) for item in items)
    assert content_of(items) == [png_bytes(value) for value in range(5)]


def test_folders_of_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    write(tmp_path, *(f"src/{n}.png" for n in range(6)))
    for n in range(6):
        (tmp_path / f"src/{n}.png").write_bytes(png_bytes(n))
    files = sorted(str(path) for path in (tmp_path / "src").iterdir())
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    columns = {"image": files, "text": list("abcdef")}
    whole = datasets.Dataset.from_dict(columns, features=features)
    train, val = whole.select(range(4)), whole.select([4, 5])
    parts = datasets.DatasetDict({"train": train, "validation": val})
    parts.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "validation": 1})
    (tmp_path / "saved/train/cache-123.arrow").write_bytes(b"")
    listing = list_source(tmp_path / "saved")
    assert [item.key for item in listing.items][:3] == [
        *("data-00000-of-00002/0", "data-00000-of-00002/1", "data-00001-of-00002/2"),
    ]
    assert listing.kind == "arrow"
    assert [item.split for item in listing.items] == ["train"] * 4 + ["val"] * 2
    assert content_of(listing.items) == [png_bytes(n) for n in range(6)]
    assert listing.ignored == {".arrow": 1, ".json": 5}
    (tmp_path / "hub/data").mkdir(parents=True)
    parts["train"].to_parquet(tmp_path / "hub/data/train-00000-of-00001.parquet")
    (tmp_path / "hub/README.md").touch()
    listing = list_source(tmp_path / "hub")
    assert [item.captions for item in listing.items] == [("a",), ("b",), ("c",), ("d",)]
    assert content_of(listing.items) == [png_bytes(n) for n in range(4)]
    assert (listing.kind, listing.ignored, listing.items[0].split) == (
        "parquet",
        {".md": 1},
        "train",
    )


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.parquet", "train"),
        ("train-00000-of-00004.parquet", "train"),
        ("validation-00001-of-00002-0a1b.parquet", "val"),
        ("test/data-00000-of-00001.arrow", "test"),
        ("trainer.parquet", ""),
        ("x/data-00000-of-00001.arrow", ""),
    ],
)
def test_splits_by_the_names_of_files(tmp_path, name, split):
    assert split_of_file(tmp_path / name) == split


def test_arrow_files_that_are_not_sound(tmp_path):
    """Offsets that point outside the file; Arrow does not check them when it reads."""
    path = write_arrow(tmp_path / "t.arrow", {"caption": pa.array(["one", "two"])})
    data = path.read_bytes()
    offsets = np.array([0, 3, 6], np.int32).tobytes()
    assert data.count(offsets) == 1
    for wrong in ([0, 1 << 30, 6], [0, -5, 6], [1 << 20, 1 << 20, 1 << 20]):
        path.write_bytes(data.replace(offsets, np.array(wrong, np.int32).tobytes()))
        with pytest.raises(SourceError, match=r"t\.arrow: .*(not a|damaged)"):
            list_source(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl", ".csv", ".json", ".tar"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_source_that_is_no_file(tmp_path, suffix, kind):
    path = tmp_path / f"x{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(SourceError, match=rf"x{suffix}: "):
        list_source(path)
