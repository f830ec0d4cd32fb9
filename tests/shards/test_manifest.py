import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from im2sp.shards import DEFAULT_COLUMNS, BatchInfo, Layout, Manifest, ShardError, ShardInfo


def tiny_manifest(**changes: Any) -> Manifest:
    shard = ShardInfo(
        file="00000.arrow",
        sha256="ab" * 32,
        size_bytes=1000,
        num_samples=5,
        splits={"train": 3, "val": 2},
        batches=(
            BatchInfo(offset=100, size_bytes=300, num_samples=4, crc32=1),
            BatchInfo(offset=400, size_bytes=200, num_samples=1, crc32=2**32 - 1),
        ),
    )
    fields: dict[str, Any] = {
        "num_samples": 5,
        "splits": {"val": 2, "train": 3},
        "layout": Layout(),
        "columns": DEFAULT_COLUMNS,
        "shards": (shard,),
        "settings": {"view": "squash-224", "note": "ü"},
    }
    return Manifest(**fields | changes)


GOLDEN = """\
{"manifest_sha256":"dde51e5ce26b316d54bcc3b77dd5887a8ce4fb976604cba2a04bae449dd8cf04",
"format":"im2sp",
"format_version":1,
"num_samples":5,
"splits":{"train":3,"val":2},
"layout":{"kind":"arrow"},
"columns":{"durations":{"codec":"varint","minimum":1},"image_units":{"bits":13,"codec":"packed",\
"count":784,"shape":[28,28]},"speech_units":{"bits":8,"codec":"packed"}},
"image_tokenizer":null,
"speech_tokenizer":null,
"raw":{},
"num_rejects":0,
"rejects_sha256":null,
"settings":{"note":"\\u00fc","view":"squash-224"},
"shards":[
{"file":"00000.arrow","sha256":"abababababababababababababababababababababababababababababababab",\
"size_bytes":1000,"num_samples":5,"splits":{"train":3,"val":2},"batches":[{"offset":100,\
"size_bytes":300,"num_samples":4,"crc32":1},{"offset":400,"size_bytes":200,"num_samples":1,\
"crc32":4294967295}]}
]
}
"""


def test_golden_text() -> None:
    assert tiny_manifest().text == GOLDEN


def test_round_trip(tmp_path: Path) -> None:
    manifest = tiny_manifest()
    manifest.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    found = Manifest.read(tmp_path)
    assert found.text == manifest.text
    assert found.shards == manifest.shards
    assert found.sha256 == json.loads(GOLDEN)["manifest_sha256"]


def test_webdataset_layout_round_trip() -> None:
    layout = Layout(kind="webdataset", samples_per_member=17)
    assert Manifest.from_bytes(tiny_manifest(layout=layout).text.encode()).layout == layout


def test_every_flipped_byte_and_every_cut_is_refused() -> None:
    data = GOLDEN.encode()
    for i in range(len(data)):
        flipped = bytearray(data)
        flipped[i] ^= 1 << (i % 8)
        with pytest.raises(ShardError, match=r"dataset\.json"):
            Manifest.from_bytes(bytes(flipped))
        with pytest.raises(ShardError, match=r"dataset\.json"):
            Manifest.from_bytes(data[:i])


def test_fields_of_later_writers_are_ignored(tmp_path: Path, forge: Callable[..., None]) -> None:
    tiny_manifest().write(tmp_path)
    forge(tmp_path, lambda content: content.update(extra={"a": 1}))
    assert Manifest.read(tmp_path).num_samples == 5


def test_missing_manifest(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ShardError, match=r"dataset\.json: no such file, so this is not a fin"):
            Manifest.read(path)


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").mkdir()
    with pytest.raises(ShardError, match="found a folder, expected a file"):
        Manifest.read(tmp_path)
    (tmp_path / "dataset.json").rmdir()
    (tmp_path / "dataset.json").symlink_to("dataset.json")
    with pytest.raises(ShardError, match=r"dataset\.json: cannot be read \("):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"format":"other"}', b"[" * 100_000, b"\xff\xfe"])
def test_other_json_is_refused(text: bytes) -> None:
    with pytest.raises(ShardError, match=r"dataset\.json: (not JSON|no \"format\")"):
        Manifest.from_bytes(text)


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ShardError, match="NaN is not JSON"):
        Manifest.from_bytes(b'{"format":NaN}')


def shard(content: dict[str, Any]) -> dict[str, Any]:
    return content["shards"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=3), "version 3, this im2sp reads 1 and 2; update"),
        (lambda c: c.update(format_version=True), "format version True"),
        (lambda c: c.update(num_samples=6), "samples in all shards: 5, expected num_samples 6"),
        (lambda c: c.update(num_samples=-1), "num_samples: -1"),
        (lambda c: c.update(num_samples="5"), "num_samples: '5'"),
        (lambda c: c.update(splits={"train": 5}), "splits of all shards together"),
        (lambda c: c.update(splits={"train": 3, "val": 1}), "splits: sum: 4, expected num_samp"),
        (lambda c: c.update(splits=[]), r"splits: \[\], expected an object"),
        (lambda c: c.update(layout={"kind": "zip"}), "layout kind: 'zip'"),
        (lambda c: c.update(layout={"kind": "webdataset", "samples_per_member": 0}), "member: 0"),
        (lambda c: c.pop("columns"), "columns: None, expected an object"),
        (lambda c: c["columns"]["durations"].update(codec="ans"), "codec 'ans' is unknown"),
        (lambda c: c.pop("shards"), "shards: None, expected a list"),
        (lambda c: c.update(shards=[3]), "shard: 3, expected an object"),
        (lambda c: c.update(shards=c["shards"] * 2, num_samples=10), "each file listed once"),
        (lambda c: c.update(image_tokenizer=[1]), "image_tokenizer: "),
        (lambda c: c.update(image_tokenizer={"codebook_file": "../x"}), r"file: '\.\./x'"),
        (lambda c: c.update(image_tokenizer={"codebook_file": "x"}), "codebook_sha256: None"),
        (lambda c: c.update(raw={"num_images": 0.5}), "raw: num_images: 0.5"),
        (lambda c: c.update(num_rejects=None), "num_rejects: None"),
        (lambda c: c.update(rejects_sha256="x"), "rejects_sha256: 'x'"),
        (lambda c: shard(c).update(file="../00000.arrow"), "shard file: .* a plain file name"),
        (lambda c: shard(c).update(file="/etc/passwd"), "shard file: '/etc/passwd'"),
        (lambda c: shard(c).update(file="a\\b"), "shard file: "),
        (lambda c: shard(c).update(file=".."), r"shard file: '\.\.'"),
        (lambda c: shard(c).update(file=""), "shard file: ''"),
        (lambda c: shard(c).update(file=None), "shard file: None"),
        (lambda c: shard(c).update(sha256="AB" * 32), "sha256: 'ABAB"),
        (lambda c: shard(c).update(size_bytes=0), "size_bytes: 0"),
        (lambda c: shard(c).update(size_bytes=599), "size_bytes: 200, .* from 1 to 199"),
        (lambda c: shard(c).update(batches=[]), "samples in all batches: 0"),
        (lambda c: shard(c).update(batches=None), "shard batches: None"),
        (lambda c: shard(c).update(batches=[1]), "shard batch: 1"),
        (lambda c: shard(c)["batches"][0].update(offset=-8), "batch 0: offset: -8"),
        (lambda c: shard(c)["batches"][0].update(offset=2**63), "batch 0: offset: "),
        (lambda c: shard(c)["batches"][1].update(offset=399), "batch 1: offset: 399"),
        (lambda c: shard(c)["batches"][1].update(offset=408), "408, expected 400, where the bat"),
        (lambda c: shard(c)["batches"][1].update(size_bytes=601), "batch 1: size_bytes: 601"),
        (lambda c: shard(c)["batches"][1].update(size_bytes=10**30), "batch 1: size_bytes: 1000"),
        (lambda c: shard(c)["batches"][1].update(num_samples=2), "in all batches: 6"),
        (lambda c: shard(c)["batches"][1].update(num_samples=257), "num_samples: 257"),
        (lambda c: shard(c)["batches"][1].update(crc32=2**32), "crc32: 4294967296"),
        (lambda c: shard(c)["batches"][1].pop("crc32"), "crc32: None"),
        (lambda c: shard(c).update(splits={"train": 4}), "00000.arrow: splits: sum: 4"),
    ],
)
def test_wrong_values_with_a_right_checksum_are_refused(
    tmp_path: Path, forge: Callable[..., None], change: Callable[[Any], object], message: str
) -> None:
    tiny_manifest().write(tmp_path)
    forge(tmp_path, change)
    with pytest.raises(ShardError, match=message) as caught:
        Manifest.read(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    tiny_manifest().write(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace("squash", "center"))
    with pytest.raises(ShardError, match="checksum .* != .*damaged or edited; copy the file again"):
        Manifest.read(tmp_path)


def test_an_inconsistent_manifest_cannot_be_built() -> None:
    with pytest.raises(ShardError, match="samples in all shards: 5, expected num_samples 4"):
        tiny_manifest(num_samples=4, splits={"a": 4})


def test_an_empty_dataset_is_sound() -> None:
    manifest = tiny_manifest(num_samples=0, splits={}, shards=())
    assert Manifest.from_bytes(manifest.text.encode()).num_samples == 0
