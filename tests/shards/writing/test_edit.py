"""Concatenated, filtered and split datasets hold the same samples, and nothing after an error."""

import re

import numpy as np
import pytest

from im2sp.shards import (
    DatasetWriter,
    Layout,
    ShardDataset,
    ShardError,
    UnitColumn,
    concatenate,
    filter_samples,
    fit_durations_codec,
    fit_speech_codec,
    split_samples,
    verify_dataset,
)
from im2sp.shards.columns.stored import StoredUnits
from im2sp.shards.schema import DEFAULT_COLUMNS
from support.datasets import COLUMNS, make_rows, make_samples, write_dataset, write_rows
from support.grid import TINY, random_tables


def same(found, expected):
    """Whether two samples hold the same values in the same columns."""
    assert set(found.keys()) == set(expected.keys())
    for name in found.keys():  # noqa: SIM118 - no Mapping
        ours, theirs = found[name], expected[name]
        for one, other in zip(
            ours if isinstance(ours, list) else [ours],
            theirs if isinstance(theirs, list) else [theirs],
            strict=True,
        ):
            if isinstance(one, np.ndarray):
                np.testing.assert_array_equal(one, other)
            else:
                assert one == other


def check(folder, expected):
    """The dataset is sound and holds the expected samples in order."""
    assert verify_dataset(folder) == []
    dataset = ShardDataset(folder)
    assert len(dataset) == len(expected)
    for found, sample in zip(dataset, expected, strict=True):
        same(found, sample)
    return dataset


def rows_of(name, num=12, seed=0):
    return [row | {"key": f"{name}/{row['key']}"} for row in make_rows(num, seed)]


@pytest.fixture
def pair(tmp_path):
    """Two datasets of format 2, coded with different tables."""
    return [write_rows(tmp_path / name, rows_of(name, seed=i)) for i, name in enumerate("ab")]


def spoken_v1(folder, prefix=""):
    """A dataset of version 1 with fitted codecs."""
    samples = [type(s)(**{**vars(s), "key": prefix + s.key}) for s in make_samples(9, speech=True)]
    columns = DEFAULT_COLUMNS | {
        "speech_units": fit_speech_codec([u for s in samples for u in s.speech_units], 200),
        "durations": fit_durations_codec([d for s in samples for d in s.durations]),
    }
    folder.mkdir()
    image_tokenizer = {"name": "i", "fingerprint": "0" * 64, "view": "squash-224"}
    return write_dataset(folder, samples, columns=columns, image_tokenizer=image_tokenizer)


def test_concatenate(tmp_path, pair):
    manifest = concatenate(pair, tmp_path / "out")
    dataset = check(tmp_path / "out", [s for folder in pair for s in ShardDataset(folder)])
    assert manifest.num_samples == 24
    assert dataset.columns == COLUMNS
    assert manifest.settings["source"]["datasets"] == [
        {"manifest_sha256": ShardDataset(folder).manifest.sha256, "split": None} for folder in pair
    ]


def test_units_that_are_coded_alike_are_not_decoded(tmp_path, monkeypatch):
    columns = {name: kind for name, kind in COLUMNS.items() if name != "speech_units"}
    folders = [write_rows(tmp_path / name, rows_of(name), columns) for name in "ab"]
    expected = [s for folder in folders for s in ShardDataset(folder)]

    def refuse(*_):
        raise AssertionError("decoded")

    with monkeypatch.context() as patch:
        patch.setattr(StoredUnits, "decode", refuse)
        patch.setattr(StoredUnits, "encode", refuse)
        concatenate(folders, tmp_path / "out")
        filter_samples(folders[0], tmp_path / "some", lambda row: row["tables"] > 0)
        split_samples(folders[0], tmp_path / "split", {"a": 0.5, "b": 0.5})
    check(tmp_path / "out", expected)


def test_the_same_datasets_give_the_same_bytes(tmp_path, pair):
    for name in ("one", "two"):
        concatenate(pair, tmp_path / name)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("edit", ["concatenate", "filter", "split"])
def test_version_1_becomes_version_2(tmp_path, edit):
    first, second = spoken_v1(tmp_path / "a", "a"), spoken_v1(tmp_path / "b", "b")
    expected = list(ShardDataset(first))
    out = tmp_path / "out"
    if edit == "concatenate":
        concatenate([first, second], out)
        expected += list(ShardDataset(second))
    elif edit == "filter":
        filter_samples(first, out, lambda _: True)
    else:
        split_samples(first, out)
        expected.sort(key=lambda s: s.split)
    manifest = check(out, expected).manifest
    assert manifest.format_version == 2
    assert manifest.image_tokenizer == {
        "name": "i",
        "fingerprint": "0" * 64,
        "view": "squash-224",
    }


def test_one_split_of_each_dataset(tmp_path, pair):
    sources = [ShardDataset(folder, "val") for folder in pair]
    manifest = concatenate(sources, tmp_path / "out")
    check(tmp_path / "out", [s for one in sources for s in one])
    assert manifest.splits == {"val": 6}
    assert manifest.raw == {}


def test_counts_of_the_inputs_are_added(tmp_path):
    for name in "ab":
        with DatasetWriter(tmp_path / name, columns={"url": "string"}) as writer:
            writer.write(key=name, url=None)
            writer.add_raw(num_images=3, image_file_bytes=5)
    manifest = concatenate([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert manifest.raw == {"num_images": 6, "image_file_bytes": 10}


def test_the_layout_is_that_of_the_first(tmp_path):
    folders = [
        write_rows(tmp_path / "a", rows_of("a"), layout="webdataset", samples_per_member=1),
        write_rows(tmp_path / "b", rows_of("b")),
    ]
    manifest = concatenate(folders, tmp_path / "out")
    assert manifest.layout == Layout(kind="webdataset", samples_per_member=1)
    check(tmp_path / "out", [s for folder in folders for s in ShardDataset(folder)])


def test_codebooks_are_copied(tmp_path):
    columns = {"image_units": UnitColumn((2,), 3), "codes": UnitColumn((2,), 3, coding="coded")}
    books = {name: np.arange(6).reshape(3, 2) / 7 for name in columns}
    settings = {"tokenizers": {"image_units": {"name": "t"}}, "codebooks": books}
    for name in "ab":
        rows = [{"key": name, "image_units": [0, 1], "codes": [1, 2]}]
        write_rows(tmp_path / name, rows, columns, **settings)
    concatenate([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    dataset = check(tmp_path / "out", [s for n in "ab" for s in ShardDataset(tmp_path / n)])
    for name in columns:
        assert np.array_equal(dataset.codebook(name), np.float32(books[name]))
    assert dataset.manifest.image_tokenizer == {"name": "t"}


def test_grids_are_coded_with_the_tables_of_the_first(tmp_path):
    columns = {"image_units": UnitColumn((2, 3), 4, coding="coded")}
    other = random_tables(0, num_codes=4, num_clusters=2)
    grids = np.random.default_rng(0).integers(0, 4, (9, 2, 3))
    for name, tables, part in (("a", TINY, 0), ("b", TINY, 3), ("c", other, 6)):
        named = {f"image_units.{table}": tensor for table, tensor in tables.items()}
        rows = [{"key": f"{part + k}", "image_units": grids[part + k]} for k in range(3)]
        write_rows(tmp_path / name, rows, columns, tables=named)
    concatenate([tmp_path / name for name in "abc"], tmp_path / "out")
    dataset = check(tmp_path / "out", [s for n in "abc" for s in ShardDataset(tmp_path / n)])
    assert np.array_equal([sample.image_units for sample in dataset], grids)
    assert np.array_equal(dataset.tensors()["image_units.clusters"], TINY["clusters"])


def test_filter(tmp_path, pair):
    seen = []

    def keep(row):
        seen.append(dict(row))
        return row["split"] == "train" and row["score"] > 1 and "caption 5" not in row["captions"]

    filter_samples(pair[0], tmp_path / "out", keep)
    expected = [s for s in ShardDataset(pair[0]) if keep(s.columns | vars(s))]
    check(tmp_path / "out", expected)
    assert 0 < len(expected) < 9
    own = [name for name, kind in COLUMNS.items() if isinstance(kind, str)]
    assert set(seen[0]) == {"key", "split", "captions", *own}


def test_split_by_shares(tmp_path):
    rows = [{"key": f"k{i}", "split": "old", "n": i} for i in range(300)]
    folder = write_rows(tmp_path / "a", rows, {"n": "int"})
    shares = {"val": 0.1, "train": 0.7, "test": 0.2}
    manifest = split_samples(folder, tmp_path / "out", shares)
    assert list(manifest.splits) == ["test", "train", "val"]
    assert {
        split: abs(num / 300 - shares[split]) < 0.08 for split, num in manifest.splits.items()
    } == dict.fromkeys(shares, True)
    assert [list(shard.splits) for shard in manifest.shards] == [["test"], ["train"], ["val"]]
    assert verify_dataset(tmp_path / "out") == []
    first = {s.key: s.split for s in ShardDataset(tmp_path / "out")}
    # A key keeps its split, whatever else the dataset holds.
    half = write_rows(tmp_path / "half", rows[::-2], {"n": "int"})
    split_samples(half, tmp_path / "out2", shares)
    found = {s.key: s.split for s in ShardDataset(tmp_path / "out2")}
    assert found.items() <= first.items()
    split_samples(folder, tmp_path / "out3", shares, seed=1)
    assert {s.key: s.split for s in ShardDataset(tmp_path / "out3")} != first


def test_split_keeps_the_splits(tmp_path, pair):
    manifest = split_samples(pair[0], tmp_path / "out")
    expected = sorted(ShardDataset(pair[0]), key=lambda s: s.split)
    check(tmp_path / "out", expected)
    assert [list(shard.splits) for shard in manifest.shards] == [["train"], ["val"]]
    card = (tmp_path / "out/README.md").read_text()
    assert '- split: "train"\n    path:\n    - "00000.arrow"\n' in card
    manifest = split_samples(ShardDataset(pair[0], "val"), tmp_path / "val")
    assert manifest.splits == {"val": 3}


def test_no_samples(tmp_path):
    write_rows(tmp_path / "a", [], {"n": "int"})
    for name, edit in (
        ("b", lambda out: concatenate([tmp_path / "a"], out)),
        ("c", lambda out: filter_samples(tmp_path / "a", out, lambda _: True)),
        ("d", lambda out: split_samples(tmp_path / "a", out)),
    ):
        assert edit(tmp_path / name).num_samples == 0
        check(tmp_path / name, [])


# Refusals -----------------------------------------------------------------------------------------


def refusal(tmp_path, *folders):
    """Message of the error, and whether a file was left."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ShardError) as caught:
        concatenate(folders, tmp_path / "out")
    return str(caught.value), sorted(path.name for path in tmp_path.iterdir()) != before


def test_a_key_in_both(tmp_path, pair):
    message = r"b: sample 'a/row/0': written before; every sample needs a unique key"
    twin = write_rows(tmp_path / "c" / "b", rows_of("a"))
    error, is_left = refusal(tmp_path, pair[0], twin)
    assert re.search(message, error)
    assert not is_left


def test_no_datasets(tmp_path):
    error, is_left = refusal(tmp_path)
    assert re.search("no datasets to concatenate; give at least one", error)
    assert not is_left


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n": "int"}, r"other: columns \['n'\], expected \['codes'\] as in .*first"),
        ({"codes": "int"}, r"other: column codes: int, expected UnitColumn\(shape=\(2,\)"),
        ({"codes": UnitColumn((2,), 4)}, r"column codes: UnitColumn.*num_codes=4.*num_codes=3"),
        ({"codes": UnitColumn((None,), 3)}, r"column codes: UnitColumn\(shape=\(None,\)"),
    ],
)
def test_other_columns(tmp_path, columns, message):
    write_rows(tmp_path / "first", [], {"codes": UnitColumn((2,), 3)})
    write_rows(tmp_path / "other", [], columns)
    error, is_left = refusal(tmp_path, tmp_path / "first", tmp_path / "other")
    assert re.search(message, error)
    assert not is_left


def test_other_tokenizers(tmp_path):
    columns = {"codes": UnitColumn((2,), 3)}
    for name, fingerprint in (("first", "1"), ("other", "2")):
        tokenizers = {"codes": {"name": "t", "fingerprint": fingerprint}}
        write_rows(tmp_path / name, [], columns, tokenizers=tokenizers)
    message = r"other: column codes: made by the tokenizer .*'2'.*, expected .*'1'.* as in .*first"
    error, is_left = refusal(tmp_path, tmp_path / "first", tmp_path / "other")
    assert re.search(message, error)
    assert not is_left


def test_other_codebooks(tmp_path):
    columns = {"codes": UnitColumn((2,), 3)}
    for i, name in enumerate(("first", "other")):
        write_rows(tmp_path / name, [], columns, codebooks={"codes": np.full((3, 2), i / 2)})
    message = r"other: tensor 'codes.codebook' differs from that of .*first"
    error, is_left = refusal(tmp_path, tmp_path / "first", tmp_path / "other")
    assert re.search(message, error)
    assert not is_left


def test_a_folder_with_a_dataset_stays(tmp_path, pair):
    before = {path.name: path.read_bytes() for path in pair[0].iterdir()}
    for edit in (
        lambda: concatenate(pair, pair[0]),
        lambda: filter_samples(pair[1], pair[0], lambda _: True),
        lambda: split_samples(pair[1], pair[0]),
    ):
        with pytest.raises(ShardError, match=r"holds a dataset.json; choose another folder"):
            edit()
        assert {path.name: path.read_bytes() for path in pair[0].iterdir()} == before


def test_foreign_files_stay(tmp_path, pair):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("00000.arrow", "codebook.safetensors"):
        (out / name).write_text("mine")
    with pytest.raises(ShardError, match=r"00000.arrow: exists and is of no dataset"):
        split_samples(pair[0], out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "00000.arrow": "mine",
        "codebook.safetensors": "mine",
    }


@pytest.mark.parametrize("shares", [{}, {"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}])
def test_wrong_shares(tmp_path, pair, shares):
    with pytest.raises(ShardError, match=r"shares are .*; expected positive numbers that sum to 1"):
        split_samples(pair[0], tmp_path / "out", shares)
    assert not (tmp_path / "out").exists()


def test_a_split_that_fails_half_way_leaves_nothing(tmp_path, pair, monkeypatch):
    write = DatasetWriter.write_stored
    seen = []

    def failing(self, row, schema):
        seen.append(row)
        if len(seen) == 11:  # in the second part
            raise KeyboardInterrupt
        write(self, row, schema)

    monkeypatch.setattr(DatasetWriter, "write_stored", failing)
    with pytest.raises(KeyboardInterrupt):
        split_samples(pair[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    split_samples(pair[0], tmp_path / "out")
    assert verify_dataset(tmp_path / "out") == []


def test_damage_names_dataset_sample_and_column(tmp_path):
    columns = {"codes": UnitColumn((None,), 9, coding="varint")}
    write_rows(tmp_path / "a", [{"key": "k", "codes": [1]}], columns)
    dataset = ShardDataset(tmp_path / "a")
    batch = dataset.batch(0)
    row = batch.row(0) | {"codes": b"\xff\xff"}
    with DatasetWriter(tmp_path / "b", columns={"codes": UnitColumn((None,), 9)}) as writer:
        with pytest.raises(ShardError, match=r"sample 'k': column codes: varint"):
            writer.write_stored(row, dataset.schema)
        row = row | {"codes": b"\x0b"}  # 11 of at most 8
        with pytest.raises(ShardError, match=r"sample 'k': column codes: code 11 at \(0,\)"):
            writer.write_stored(row, dataset.schema)
    assert len(ShardDataset(tmp_path / "b")) == 0
