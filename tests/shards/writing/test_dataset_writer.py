import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from im2sp.shards import (
    DatasetWriter,
    ShardDataset,
    ShardError,
    UnitColumn,
    files,
    fit_tables,
    join_parts,
    verify_dataset,
)
from support.columns import COLUMNS, LAYOUTS, assert_same_row, make_rows, write_rows

GRID = {"image_units": UnitColumn(shape=(2, 2), num_codes=16)}
CODES = np.arange(4).reshape(2, 2)


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(tmp_path: Path, layout: str) -> None:
    rows = make_rows(100)
    dataset = write_rows(tmp_path / "a", rows, **LAYOUTS[layout])
    assert [len(dataset.manifest.shards), len(dataset)] == [3, 100]
    assert dataset.columns == COLUMNS
    for found, row in zip(dataset, rows, strict=True):
        assert_same_row(found, row)
    assert verify_dataset(tmp_path / "a") == []
    assert not (tmp_path / "a/.im2sp-parts").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_samples_same_bytes_also_when_copied(tmp_path: Path, layout: str) -> None:
    rows = make_rows(50)
    dataset = write_rows(tmp_path / "a", rows, **LAYOUTS[layout])
    # Other types of the same numbers, another order of the columns.
    columns = dict(reversed(COLUMNS.items()))
    rows = [row | {"line": None if row["line"] is None else row["line"].tolist()} for row in rows]
    write_rows(tmp_path / "b", rows, **LAYOUTS[layout], columns=columns)
    options = {**LAYOUTS[layout], "samples_per_shard": 40, "columns": dataset.columns}
    with DatasetWriter(tmp_path / "c", **options) as writer:
        for sample in dataset:
            writer.write(**sample)
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b") == content_of(tmp_path / "c")


def test_the_columns_of_the_sample_are_its_attributes(tmp_path: Path) -> None:
    columns = {"speech_units": UnitColumn((None,), 200, many=True), "image_units": COLUMNS["line"]}
    with DatasetWriter(tmp_path, columns=columns) as writer:
        units = torch.arange(32)
        writer.write(key="a", image_units=units, speech_units=[[1, 2], []])
        writer.write(key="b", image_units=None, speech_units=None, captions=("x",))
    first, second = ShardDataset(tmp_path)
    assert first.image_units is not None
    assert (first.image_units.dtype, first.image_units.shape) == (np.uint32, (32,))
    assert [one.tolist() for one in first.speech_units] == [[1, 2], []]
    assert (second.image_units, second.speech_units, second.durations) == (None, [], None)
    assert (second["speech_units"], second["captions"], second["key"]) == (None, ["x"], "b")
    with pytest.raises(KeyError, match="sample 'a' has no column 'url', only"):
        first["url"]


@st.composite
def column_and_arrays(draw: st.DrawFn) -> tuple[UnitColumn, list[Any]]:
    shape = tuple(draw(st.lists(st.none() | st.integers(1, 4), min_size=1, max_size=3)))
    num_codes = draw(st.sampled_from([1, 2, 3, 200, 256, 1025, 65536, 65537, 1 << 31, 1 << 32]))
    codings = ["packed"] + ["varint", "coded"] * (num_codes <= 65536)
    column = UnitColumn(shape, num_codes, draw(st.booleans()), draw(st.sampled_from(codings)))
    dtype = draw(st.sampled_from([np.int64, np.uint32] if num_codes > 65536 else [np.uint16]))
    array = st.tuples(*(st.integers(0, 3) if n is None else st.just(n) for n in shape)).flatmap(
        lambda size: hnp.arrays(dtype, size, elements=st.integers(0, num_codes - 1))
    )
    value = st.lists(array, max_size=3) if column.many else array
    return column, draw(st.lists(st.none() | value, min_size=1, max_size=5))


@settings(max_examples=60, deadline=None)
@given(case=column_and_arrays(), layout=st.sampled_from(list(LAYOUTS)))
def test_any_column_round_trips(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[UnitColumn, list[Any]], layout: str
) -> None:
    column, values = case
    out = tmp_path_factory.mktemp("any")
    with DatasetWriter(
        out, columns={"x": column}, samples_per_shard=3, **LAYOUTS[layout]
    ) as writer:
        for i, value in enumerate(values):
            writer.write(key=str(i), x=value)
    dataset = ShardDataset(out)
    assert dataset.columns == {"x": column}
    for sample, value in zip(dataset, values, strict=True):
        if value is None:
            assert sample["x"] is None
            continue
        pairs = zip(sample["x"], value, strict=True) if column.many else [(sample["x"], value)]
        for found, expected in pairs:
            assert found.dtype == column.dtype
            np.testing.assert_array_equal(found, expected)
    assert verify_dataset(out) == []


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_units": np.zeros((4, 5), int)}, r"image_units: shape \(4, 5\), expected \(4, 4\)"),
        ({"image_units": np.zeros((4, 4))}, "image_units: dtype float64, expected integers"),
        ({"image_units": np.full((4, 4), 16384)}, r"code 16384 at \(0, 0\), expected 0 to 16383"),
        ({"image_units": -np.ones((4, 4), int)}, r"code -1 at \(0, 0\), expected 0 to 16383"),
        ({"image_units": [[1], [2, 3]]}, "image_units: not an array"),
        ({"audio_units": np.zeros((7, 2), int)}, r"shape \(7, 2\), expected \(8, None\)"),
        ({"speech_units": [[1], [200]]}, r"speech_units: array 1: code 200 at \(0,\)"),
        ({"speech_units": 3}, "speech_units: a int, expected a list of arrays"),
        ({"durations": [[0]], "speech_units": [[1]]}, "'k': a duration of 0, expected at least"),
        ({"durations": []}, "sample 'k': durations and speech_units differ in number or length"),
        ({"wide": [[0, 1, 1 << 32]]}, r"wide: array 0: code 4294967296 at \(2,\)"),
        ({"url": 3}, "column url: a int, expected string"),
        ({"is_free": 1}, "column is_free: a int, expected bool"),
        ({"number": True}, "column number: a bool, expected int"),
        ({"number": 1 << 63}, "expected an int of 64 bits"),
        ({"score": "x"}, "column score: a str, expected float"),
        ({"score": float("nan")}, "column score: nan, expected a finite float; use None"),
        ({"data": "x"}, "column data: a str, expected bytes"),
        ({"tags": "x"}, "column tags: a str, expected list of string"),
        ({"tags": ["x", None]}, "column tags: a NoneType, expected string"),
        ({"meta": 1}, "sample 'k': unknown column 'meta', expected only"),
        ({"captions": "a dog"}, "column captions: a str, expected list of string"),
        ({"split": None}, "column split: a NoneType, expected string"),
        ({"key": ""}, "sample '': the key is empty"),
    ],
)
def test_a_sample_that_does_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = make_rows(2)[1] | {"key": "k"}
    out = tmp_path / "new"
    rows = [row | {"key": "before"}, row | change]
    with pytest.raises(ShardError, match=message) as caught:
        write_rows(out, rows)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_missing_and_repeated(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, columns=GRID) as writer:
        with pytest.raises(ShardError, match="sample 'a': column image_units: missing; give None"):
            writer.write(key="a")
        writer.write(key="a", image_units=CODES)
        with pytest.raises(ShardError, match="sample 'a': written before; every sample needs"):
            writer.write(key="a", image_units=CODES)
    assert len(ShardDataset(tmp_path)) == 1
    with pytest.raises(ShardError, match="the writer is not open; use it in a with block"):
        writer.write(key="b", image_units=CODES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"Image": "string"}}, "column 'Image': expected a name of lower-case"),
        ({"columns": {"key": "string"}}, "column 'key': expected a name .* none of"),
        ({"columns": {"a_sizes": "string"}}, "does not end with _sizes"),
        ({"columns": {"image_units": "string"}}, "image_units: expected one array of units a"),
        (
            {"columns": {"speech_units": UnitColumn((None,), 200)}},
            "column speech_units: expected a list of arrays of one axis .* such as audio_units",
        ),
        ({"columns": {"x": "str"}}, "column x: 'str', expected a UnitColumn or one of string, bo"),
        ({"layout": "zip"}, "layout kind: 'zip'"),
        ({"samples_per_member": 0}, "samples_per_member: 0"),
        ({"samples_per_shard": 0}, "samples_per_shard is 0"),
        ({"part": (2, 2)}, "part is 2; expected a whole number from 0 to 1"),
        ({"part": (0, 0)}, "number of parts is 0"),
        ({"tokenizers": {"x": {}}}, r"tokenizers: 'x' is no unit column of \['image_units'\]"),
        ({"codebooks": {"x": [[1.0]]}}, "codebooks: 'x' is no unit column"),
        (
            {"codebooks": {"image_units": np.zeros((15, 3))}},
            r"column image_units: codebook of float64 and shape \(15, 3\), expected finite floats "
            r"of shape \(16, width\)",
        ),
        ({"codebooks": {"image_units": np.full((16, 3), np.nan)}}, "expected finite floats"),
        ({"codebooks": {"image_units": np.zeros((16, 3), int)}}, "codebook of int64"),
        (
            {"columns": {"x": UnitColumn((2,), 9, coding="coded")}, "part": (0, 2)},
            "coded columns in parts need the same tables; give tables=",
        ),
        (
            {"columns": {"x": UnitColumn((2,), 9, coding="coded")}, "tables": {"y": CODES}},
            "column x: is coded, and its table 'lengths' is not here; open the dataset",
        ),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        DatasetWriter(tmp_path / "new", **{"columns": GRID, **options})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": ()}, "expected 1 to 8 axes"),
        ({"shape": (0,)}, "an axis of shape is 0"),
        ({"shape": (1.5,)}, "an axis of shape is 1.5"),
        ({"shape": (1 << 20, 1 << 20)}, "expected at most 16777216 units"),
        ({"num_codes": 0}, "num_codes is 0"),
        ({"num_codes": (1 << 32) + 1}, "num_codes is 4294967297"),
        ({"many": 1}, "many is 1; expected True or False"),
        ({"coding": "ans"}, "coding is 'ans'; expected one of"),
        ({"coding": "coded", "num_codes": 65537}, "'coded' takes at most 65536, use 'packed'"),
    ],
)
def test_columns_that_make_no_sense(arguments: Any, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        UnitColumn(**{"shape": (2,), "num_codes": 9, **arguments})


def test_folders_that_hold_something(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "00000.arrow").write_text("mine")
    with (
        pytest.raises(ShardError, match=r"00000\.arrow: exists and is of no dataset; move it"),
        DatasetWriter(tmp_path, columns=GRID),
    ):
        pass
    (tmp_path / "00000.arrow").unlink()
    write_rows(tmp_path, make_rows(3))
    before = content_of(tmp_path)
    with (
        pytest.raises(ShardError, match=r"holds a dataset\.json; choose another folder"),
        DatasetWriter(tmp_path, columns=GRID),
    ):
        pass
    assert content_of(tmp_path) == before


# Failures -----------------------------------------------------------------------------------------


def test_a_url_is_no_folder():
    columns = {"url": "string"}
    match = r"^s3://b/x: datasets are written to folders; write to one, and copy it to"
    with pytest.raises(ShardError, match=match), DatasetWriter("s3://b/x", columns=columns):
        pass
    assert not Path("s3:").exists()


@pytest.mark.parametrize("num_rows", [0, 1, 39, 40, 41, 85])
def test_a_failed_writer_leaves_nothing(tmp_path: Path, num_rows: int) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    def write() -> None:
        with DatasetWriter(tmp_path, columns=COLUMNS, samples_per_shard=40) as writer:
            for row in make_rows(num_rows):
                writer.write(**row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert os.listdir(tmp_path) == ["notes.txt"]
    write_rows(tmp_path, make_rows(41))
    assert verify_dataset(tmp_path) == []


def test_a_full_disk_at_the_end_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("im2sp.shards.manifest.Manifest.write", fail)
    with pytest.raises(OSError, match="No space left"):
        write_rows(tmp_path / "new", make_rows(50))
    assert not (tmp_path / "new/dataset.json").exists()
    assert list((tmp_path / "new").glob("*.arrow")) == []


def test_a_killed_writer_starts_again(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with DatasetWriter(tmp_path / "a", columns=GRID, samples_per_shard=2) as writer:
            for i in range(5):
                writer.write(key=str(i), image_units=CODES)
            os._exit(9)
    os.waitpid(pid, 0)
    assert {path.name for path in (tmp_path / "a").glob("*.arrow")} == {
        "00000.arrow",
        "00001.arrow",
    }
    for out in (tmp_path / "a", tmp_path / "b"):
        with DatasetWriter(out, columns=GRID) as writer:
            writer.write(key="0", image_units=CODES)
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")


# Parts --------------------------------------------------------------------------------------------


def test_parts_make_the_dataset_of_one_writer(tmp_path: Path) -> None:
    """Parts of whole shards, written in any order: the same samples and batches."""
    rows = make_rows(100)
    tables = fit_tables(COLUMNS, rows[:40])
    codebooks = {"line": np.zeros((1 << 18, 2))}
    options: Any = {"tables": tables, "codebooks": codebooks, "tokenizers": {"line": {"name": "t"}}}
    one = write_rows(tmp_path / "one", rows, **options)
    for number in (2, 0, 1):
        out = tmp_path / "parts"
        columns = {"columns": COLUMNS, "samples_per_shard": 20, **options}
        with DatasetWriter(out, part=(number, 3), **columns) as writer:
            for row in rows[number * 40 : (number + 1) * 40]:
                writer.write(**row)
            writer.reject(f"{number}.jpg", "cut")
            writer.add_raw(num_images=number)
        assert writer.manifest is None
        if number != 1:
            with pytest.raises(ShardError, match=r"of 3 missing: .*1; write them, then join again"):
                join_parts(out)
    manifest = join_parts(out)
    joined = ShardDataset(out)
    assert [shard.file for shard in manifest.shards] == [
        "00000.arrow", "00000-00001.arrow", "00001.arrow", "00001-00001.arrow", "00002.arrow",
    ]  # fmt: skip
    assert (manifest.raw, manifest.num_rejects) == ({"num_images": 3}, 3)
    assert joined.columns == one.columns
    assert joined.manifest.tokenizer_of("line") == {"name": "t"}
    assert joined.codebook("line").shape == (1 << 18, 2)
    for found, row in zip(joined, rows, strict=True):
        assert_same_row(found, row)
    assert verify_dataset(out) == []
    assert (out / "rejects.jsonl").read_text().splitlines()[2] == (
        '{"file": "2.jpg", "reason": "cut"}'
    )


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    def write(number: int, num_parts: int = 2, **options: Any) -> None:
        with DatasetWriter(tmp_path, part=(number, num_parts), columns=GRID, **options) as writer:
            writer.write(key=f"{number}", image_units=CODES)

    with pytest.raises(ShardError, match="no finished parts, expected all parts"):
        join_parts(tmp_path / "nothing")
    write(0, settings={"a": 1})
    write(1, settings={"a": 2})
    with pytest.raises(ShardError, match=r"settings of part 1 is \{'a': 2\}, expected \{'a': 1\}"):
        join_parts(tmp_path)
    write(1, settings={"a": 1})  # replaces the part
    (tmp_path / "00001.arrow").rename(tmp_path / "away")
    with pytest.raises(ShardError, match=r"00001\.arrow: missing, or not of .* write part 1 again"):
        join_parts(tmp_path)
    (tmp_path / "away").rename(tmp_path / "00001.arrow")
    write(2, 3)
    with pytest.raises(ShardError, match=r"parts of \[2, 3\], expected all parts of one number"):
        join_parts(tmp_path)
    (tmp_path / ".im2sp-parts/00002-of-00003.json").unlink()
    (tmp_path / ".im2sp-parts/00000-of-00002.json").write_text("{")
    with pytest.raises(ShardError, match=r"00000-of-00002\.json: not the record of a part"):
        join_parts(tmp_path)


def test_one_writer_a_part(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, columns=GRID, part=(1, 2)) as writer:
        with (
            pytest.raises(ShardError, match="another process writes part 1 of 2 here"),
            DatasetWriter(tmp_path, columns=GRID, part=(1, 2)),
        ):
            pass
        writer.write(key="a", image_units=CODES)
    with DatasetWriter(tmp_path, columns=GRID, part=(0, 2)):
        pass  # a part may have no samples
    assert join_parts(tmp_path).num_samples == 1


def test_a_single_part_waits_to_be_joined_as_several_do(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, columns=GRID, part=(0, 1)) as writer:
        writer.write(key="a", image_units=CODES)
    assert writer.manifest is None
    assert not (tmp_path / "dataset.json").exists()
    assert join_parts(tmp_path).num_samples == 1


def test_a_writer_that_fails_behind_the_rename_of_a_shard_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    def write() -> None:
        with DatasetWriter(tmp_path, columns=GRID, samples_per_shard=1) as writer:
            for key in "ab":
                writer.write(key=key, image_units=CODES)

    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync_path", fail)
        with pytest.raises(OSError, match="No space left"):
            write()
    assert not list(tmp_path.glob("*.arrow"))
    write()
    assert len(ShardDataset(tmp_path)) == 2
