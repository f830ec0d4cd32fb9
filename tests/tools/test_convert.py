"""tools/convert.py: every kind of source becomes the same samples, and bad ones become rejects."""

import gzip
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc, parquet

from im2sp.shards import ShardDataset, UnitColumn, pack_units, verify_dataset
from im2sp.tools.convert import main
from im2sp.tools.converting.seit import decode
from support.datasets import COLUMNS, make_rows, write_rows

ROOT = Path(__file__).resolve().parents[2]
IMAGES = "image_units:4x4:300"


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def grid(i, top=300):
    return np.random.default_rng(i).integers(0, top, (4, 4))


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tar(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def convert(tmp_path, capsys):
    """Run the command into a new dataset; returns exit code, output and errors."""

    def run(*args, quiet=True):
        flags = ["--out", str(tmp_path / "out"), *(["--quiet"] if quiet else [])]
        code = main([*map(str, args), *flags])
        shown = capsys.readouterr()
        if code == 0:
            assert verify_dataset(tmp_path / "out") == []
        else:
            assert not (tmp_path / "out").exists()
            assert shown.err.count("\n") == 1 or code == 2
        return code, shown.out, shown.err

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def rejects(folder):
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


# Folders and tars ---------------------------------------------------------------------------------


def files_of_ten():
    files = {}
    for i in range(10):
        files[f"a.b/{i}.npy"] = npy(grid(i).astype(("int64", "uint16", ">i4")[i % 3]))
        files[f"a.b/{i}.txt"] = f"caption {i}\n".encode()
    return files


@pytest.mark.parametrize("form", ["folder", "tar", "gz"])
def test_files_that_share_a_key_are_a_sample(tmp_path, convert, out, form):
    if form == "folder":
        args = ["npy", fill(tmp_path / "in", files_of_ten())]
    else:
        args = ["webdataset", tar(tmp_path / f"0.tar{'.gz' * (form == 'gz')}", files_of_ten())]
    flags = ["--split", "train", "--tokenizers", "image_units=mine"]
    assert convert(*args, "--columns", IMAGES, *flags) == (0, "", "")
    dataset = ShardDataset(out)
    assert dataset.columns == {"image_units": UnitColumn((4, 4), 300)}
    assert dataset.manifest.image_tokenizer == {"name": "mine"}
    assert [sample.key for sample in dataset] == [f"a.b/{i}" for i in range(10)]
    for i, sample in enumerate(dataset):
        assert (sample.split, sample.captions) == ("train", [f"caption {i}"])
        np.testing.assert_array_equal(sample.image_units, grid(i))


def test_tars_of_a_folder_in_order(tmp_path, convert, out):
    for n in (1, 0):
        tar(tmp_path / f"{n}.tar", {f"{n}.npy": npy(grid(n))})
    fill(tmp_path, {"notes.md": b""})
    assert convert("webdataset", tmp_path, "--columns", IMAGES)[0] == 0
    assert [sample.key for sample in ShardDataset(out)] == ["0", "1"]


def test_several_columns_json_and_what_is_not_used(tmp_path, convert, out):
    about = {"captions": ["x", "y"], "url": "u", "split": "validation", "blob": "YWJj", "n": None}
    files = {
        "k.codes.npy": npy(grid(1)),
        "k.mimi.npy": npy(np.arange(16).reshape(1, 8, 2)),
        "k.cls": b"7\n",
        "k.json": json.dumps(about).encode(),
        "k.jpg": b"not read",
    }
    columns = ["image_units=codes.npy:4x4:300", "audio_units=mimi.npy:8xT:2048", "label=cls:int"]
    columns += ["url:string", "blob:bytes", "n:int"]
    folder = fill(tmp_path / "in", files)
    code, text, _ = convert("npy", folder, "--columns", *columns, quiet=False)
    assert code == 0
    assert "not used  .jpg (1)" in text
    assert re.search(r"written   1 sample in 1 shard to .*out, [\d,]+ bytes", text)
    (sample,) = ShardDataset(out)
    assert (sample.split, sample.captions) == ("val", ["x", "y"])
    assert [sample[name] for name in ("label", "url", "blob", "n")] == [7, "u", b"abc", None]
    np.testing.assert_array_equal(sample["audio_units"], np.arange(16).reshape(8, 2))


def test_many_arrays_of_a_sample(tmp_path, convert, out):
    units = [np.arange(n) for n in (3, 1, 12)]
    files = {f"k.speech.{n}.npy": npy(array) for n, array in zip((0, 2, 10), units, strict=True)}
    folder = fill(tmp_path / "in", files)
    spec = "speech_units=speech.npy:T:200:many:coded"
    assert convert("npy", folder, "--columns", spec)[0] == 0
    (sample,) = ShardDataset(out)
    assert [array.tolist() for array in sample.speech_units] == [one.tolist() for one in units]
    assert ShardDataset(out).columns["speech_units"].coding == "coded"


def test_flat_arrays_and_leading_axes_of_one(tmp_path, convert, out):
    files = {"a.npy": npy(grid(1).reshape(-1)), "b.npy": npy(grid(2)[None, None])}
    files["c.npy"] = npy(np.asfortranarray(grid(3)))
    assert convert("npy", fill(tmp_path / "in", files), "--columns", IMAGES)[0] == 0
    for i, sample in enumerate(ShardDataset(out), 1):
        np.testing.assert_array_equal(sample.image_units, grid(i))


BIG_HEADER = npy(grid(0)).replace(b"(4, 4), }", b"(9999999, 9), }".ljust(9))
BAD_FILES = [
    (npy(np.zeros((4, 4))), "column image_units: dtype float64, expected integers"),
    (npy(grid(0)[:3]), r"column image_units: shape \(3, 4\), expected \(4, 4\)"),
    (npy(grid(0) + 1000), r"column image_units: code \d+ at \(0, 0\), expected 0 to 299"),
    (npy(grid(0) - 1000), r"column image_units: code -\d+ at \(0, 0\), expected 0 to 299"),
    (npy(grid(0))[:-1], r"\.npy of shape \(4, 4\) and int64 with 127 bytes, expected 128"),
    (npy(grid(0))[:30], "not a .npy file"),
    (b"", "not a .npy file"),
    (npy(np.array([{}, 1])), "holds Python objects, which are never unpickled; save integers"),
]


@pytest.mark.parametrize(("content", "reason"), BAD_FILES)
@pytest.mark.parametrize("form", ["npy", "webdataset"])
def test_a_bad_file_is_one_reject(tmp_path, convert, out, content, reason, form):
    files = {"a.npy": npy(grid(1)), "bad.npy": content, "c.npy": npy(grid(2))}
    source = fill(tmp_path / "in", files)
    if form == "webdataset":
        source = tar(tmp_path / "0.tar", files)
    assert convert(form, source, "--columns", IMAGES)[0] == 0
    assert [sample.key for sample in ShardDataset(out)] == ["a", "c"]
    (row,) = rejects(out)
    assert row["file"] == f"{source}: bad"
    assert re.match(f"sample 'bad': .*{reason}", row["reason"])


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"x.npy": None, "x.json": b"[1]"}, "x.json: no JSON object"),
        ({"x.npy": None, "x.json": b"{"}, "x.json or .txt: cannot be read"),
        ({"x.npy": None, "x.txt": b"\xff"}, "x.json or .txt: cannot be read"),
        ({"x.txt": b"alone"}, "sample 'x': no units in it"),
        ({"x.npy": None, "x.cls": b"seven"}, "column cls: 'seven', expected int"),
        ({"x.npy": None, "x.json": b'{"ok": 3}'}, "column ok: a int, expected bool"),
        ({"x.npy": None, "x.ok": b"yes"}, "column ok: 'yes', expected 0, 1, false or true"),
        ({"x.npy": None, "x.json": b'{"blob": "%"}'}, "column blob: not base64"),
        ({"x.npy": None, "x.json": b'{"key": "a"}'}, "sample 'a': written before"),
    ],
)
def test_bad_texts_are_rejects(tmp_path, convert, out, files, reason):
    good = {"a.npy": npy(grid(0)), "a.ok": b"true", "a.cls": b"1"}
    folder = fill(tmp_path / "in", good | {n: c or npy(grid(1)) for n, c in files.items()})
    columns = [IMAGES, "cls:int", "ok:bool", "blob:bytes"]
    assert convert("npy", folder, "--columns", *columns)[0] == 0
    (row,) = rejects(out)
    assert reason in row["reason"]


def test_large_members_are_rejects(tmp_path, convert, out, monkeypatch):
    monkeypatch.setattr("im2sp.tools.converting.members.MAX_MEMBER_BYTES", 1000)
    files = {"a.npy": npy(grid(0)), "b.npy": npy(np.zeros(200, int)), "c.jpg": bytes(5000)}
    path = tar(tmp_path / "0.tar", files)
    assert convert("webdataset", path, "--columns", IMAGES)[0] == 0
    assert [row["reason"] for row in rejects(out)] == [
        "sample 'b': column image_units: 1,728 bytes, over the limit of 1,000",
        "sample 'c': no units in it",
    ]
    path.unlink()


def test_if_all_are_refused_no_dataset_is_left(tmp_path, convert):
    folder = fill(tmp_path / "in", {f"{i}.npy": npy(grid(i)) for i in range(3)})
    code, _, errors = convert("npy", folder, "--columns", "image_units:8x8:300")
    assert code == 1
    assert "3 samples refused and none written; the first: sample '0': column image_units" in errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["npy", "nowhere"], "nowhere: no such folder"),
        (["npy", "empty"], "empty: holds no files"),
        (["webdataset", "nowhere.tar"], "nowhere.tar: no such file"),
        (["webdataset", "empty"], "empty: holds no tars"),
        (["webdataset", "text.txt"], "text.txt: no tar, or cut"),
        (["webdataset", "cut.tar"], "cut.tar: no tar, or cut"),
    ],
)
def test_missing_and_damaged_sources(tmp_path, convert, monkeypatch, args, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no tar " * 200)
    path = tar(tmp_path / "cut.tar", {"a.npy": npy(np.zeros(5000, int))})
    path.write_bytes(path.read_bytes()[:9000])
    monkeypatch.chdir(tmp_path)
    code, _, errors = convert(*args, "--columns", IMAGES)
    assert code == 1
    assert message in errors


# One .npy of all samples --------------------------------------------------------------------------


def test_a_stack(tmp_path, convert, out):
    stack = np.random.default_rng(0).integers(0, 2**18, (12, 32), dtype=np.int32)
    np.save(tmp_path / "lines.npy", stack)
    assert convert("npy", tmp_path / "lines.npy", "--columns", "image_units:32:262144")[0] == 0
    dataset = ShardDataset(out)
    assert [sample.key for sample in dataset] == [f"lines-{i:02d}" for i in range(12)]
    np.testing.assert_array_equal([sample.image_units for sample in dataset], stack)


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (npy(np.arange(5)), ["a:5:9"], r"shape (5,), expected (samples, ...)"),
        (npy(np.array([{}])), ["a:5:9"], "not a .npy file of integers"),
        (npy(np.zeros((9, 5), int))[:-1], ["a:5:9"], "not a .npy file of integers"),
        (npy(np.zeros((9, 5), int)), ["a:5:9", "b:5:9"], "one .npy holds one unit column"),
        (npy(np.zeros((0, 5), int)), ["a:5:9"], "no samples found"),
    ],
)
def test_bad_stacks(tmp_path, convert, content, columns, message):
    (tmp_path / "x.npy").write_bytes(content)
    code, _, errors = convert("npy", tmp_path / "x.npy", "--columns", *columns)
    assert code == 1
    assert message in errors


# EnCodec ------------------------------------------------------------------------------------------


def ecdc(codes, **changes):
    about = {
        "m": "encodec_24khz",
        "al": 320 * codes.shape[1] - 5,
        "nc": codes.shape[0],
        "lm": False,
    }
    header = json.dumps(about | changes).encode()
    packed = pack_units(codes.T.reshape(-1).astype(np.uint16), bits=10).tobytes()
    return struct.pack("!4sBI", b"ECDC", 0, len(header)) + header + packed


def test_ecdc_files_of_encodec(tmp_path, convert, out):
    clips = [np.random.default_rng(n).integers(0, 1024, (8, n)) for n in (75, 31, 2)]
    folder = fill(tmp_path / "in", {f"{i}.ecdc": ecdc(clip) for i, clip in enumerate(clips)})
    assert convert("npy", folder, "--columns", "audio_units=ecdc:8xT:1024")[0] == 0
    for clip, sample in zip(clips, ShardDataset(out), strict=True):
        np.testing.assert_array_equal(sample["audio_units"], clip)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"ECDC", "not an .ecdc file of EnCodec"),
        (b"XXXX" + ecdc(grid(0))[4:], "not an .ecdc file of EnCodec"),
        (ecdc(grid(0), m="encodec_48khz"), "model 'encodec_48khz'; expected version 0"),
        (ecdc(grid(0), lm=True), "coded with a language model; expected"),
        (ecdc(grid(0), nc=999), ".ecdc of 999 codebooks"),
        (ecdc(grid(0))[:-1], ".ecdc of 4 frames of 4 codebooks with 19 bytes, expected 20"),
        (ecdc(grid(0)) + b"x", "with 21 bytes, expected 20"),
    ],
)
def test_other_ecdc_files_are_rejects(tmp_path, convert, out, content, reason):
    folder = fill(tmp_path / "in", {"a.ecdc": ecdc(grid(0)), "b.ecdc": content})
    assert convert("npy", folder, "--columns", "audio_units=ecdc:4xT:1024")[0] == 0
    (row,) = rejects(out)
    assert reason in row["reason"]


# The datasets library, Parquet, Arrow -------------------------------------------------------------


def rows_of(num):
    return {
        "codes": [grid(i).tolist() for i in range(num)],
        "text": [f"t{i}" for i in range(num)],
        "url": ["u", None] * (num // 2),
        "extra": list(range(num)),
    }


def saved_table(tmp_path, form, num=8):
    """A file or folder of the form, and the expected keys' stem."""
    if form.startswith("datasets"):
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        rows = datasets.Dataset.from_dict(rows_of(num))
        if form == "datasets-array":
            rows = rows.cast_column("codes", datasets.Array2D((4, 4), "int32"))
        rows.save_to_disk(str(tmp_path / "in"))
        return tmp_path / "in", "data-00000-of-00001"
    table = pa.table(rows_of(num))
    if form == "parquet":
        path = tmp_path / "in" / "rows.parquet"
        path.parent.mkdir()
        parquet.write_table(table, path, row_group_size=3)
        return path.parent, "rows"
    path = tmp_path / "rows.arrow"
    opened = ipc.new_file if form == "arrow-file" else ipc.new_stream
    with opened(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path, "rows"


FORMS = ["datasets", "datasets-array", "parquet", "arrow-file", "arrow-stream"]


@pytest.mark.parametrize("form", FORMS)
def test_rows(tmp_path, convert, out, form):
    source, stem = saved_table(tmp_path, form)
    columns = ["image_units=codes:4x4:300", "url:string"]
    code, text, _ = convert("hf", source, "--columns", *columns, quiet=False)
    assert code == 0
    assert "not used  extra (8)" in text
    for i, sample in enumerate(ShardDataset(out)):
        assert (sample.key, sample.captions) == (f"{stem}-{i:09d}", [f"t{i}"])
        assert sample["url"] == ("u", None)[i % 2]
        np.testing.assert_array_equal(sample.image_units, grid(i))


def test_splits_keys_and_captions_of_rows(tmp_path, convert, out):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict(
        {"units": [[[1, 2]], [[3]]], "words": [["a", "b"], ["c"]], "text": ["no", "no"]}
    )
    splits = datasets.DatasetDict({"train": rows, "validation": rows})
    splits.save_to_disk(str(tmp_path / "in"))
    spec = "speech_units=units:T:200:many"
    assert convert("hf", tmp_path / "in", "--columns", spec, "--captions", "words")[0] == 0
    dataset = ShardDataset(out)
    assert dataset.manifest.splits == {"train": 2, "val": 2}
    stem = "data-00000-of-00001-00000000"
    assert [s.key for s in dataset] == [f"{s}/{stem}{i}" for s in ("train", "val") for i in (0, 1)]
    assert [s.captions for s in dataset] == [["a", "b"], ["c"]] * 2
    assert [s.speech_units[0].tolist() for s in dataset] == [[1, 2], [3]] * 2


def test_splits_of_file_names_and_a_key_column(tmp_path, convert, out):
    (tmp_path / "in").mkdir()
    for i, name in enumerate(("train-00000-of-00001", "test", "rows")):
        table = pa.table({"id": [f"k{i}"], "file": [10 + i], "codes": [[[i] * 2] * 2]})
        parquet.write_table(table, tmp_path / f"in/{name}.parquet")
    args = ["hf", tmp_path / "in", "--columns", "codes:2x2:9", "--split", "other"]
    assert convert(*args, "--key", "file")[0] == 0
    found = {sample.key: sample.split for sample in ShardDataset(out)}
    assert found == {"10": "train", "11": "test", "12": "other"}


def test_many_arrays_of_a_row(tmp_path, convert, out):
    table = pa.table({"units": [[[1, 2], [3]], [], None], "key": ["a", "b", "c"]})
    parquet.write_table(table, tmp_path / "x.parquet")
    spec = "speech_units=units:T:200:many"
    assert convert("hf", tmp_path / "x.parquet", "--columns", spec)[0] == 0
    (sample,) = ShardDataset(out)
    assert [one.tolist() for one in sample.speech_units] == [[1, 2], [3]]
    assert [row["reason"] for row in rejects(out)] == [
        "sample 'b': no units in it",
        "sample 'c': no units in it",
    ]


@pytest.mark.parametrize(
    ("value", "spec", "reason"),
    [
        ([[1, 2], [3]], "u:2x2:9", r"lists of different lengths, expected shape (2, 2)"),
        ([[1.5, 2.0]], "u:1x2:9", "dtype float64, expected integers"),
        ("abc", "u:T:9", "expected integers"),
        (5, "u:T:9:many", "a int, expected a list of arrays"),
        ([[1, 9]], "u:1x2:9", "code 9 at (0, 1), expected 0 to 8"),
    ],
)
def test_a_bad_row_is_a_reject(tmp_path, convert, value, spec, reason):
    parquet.write_table(pa.table({"u": [value]}), tmp_path / "x.parquet")
    code, _, errors = convert("hf", tmp_path / "x.parquet", "--columns", spec)
    assert code == 1
    assert (
        "1 sample refused and none written; the first: sample 'x-000000000': column u: " in errors
    )
    assert reason in errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "rows.parquet").unlink(), "in: holds no .parquet or .arrow files"),
        (
            lambda d: (d / "rows.parquet").write_bytes(b"PAR1"),
            "rows.parquet: row 0: cannot be read",
        ),
        (lambda d: (d / "state.json").write_text("{"), "in: "),
        (lambda d: (d / "state.json").write_text("{}"), "in: damaged; save it again"),
        (
            lambda d: (d / "state.json").write_text('{"_indices_files": [1]}'),
            "call flatten_indices",
        ),
        (lambda d: (d / "dataset_dict.json").write_text("[]"), "in: damaged; save it again"),
    ],
)
def test_damaged_tables(tmp_path, convert, change, message):
    folder, _ = saved_table(tmp_path, "parquet")
    change(folder)
    code, _, errors = convert("hf", folder, "--columns", "codes:4x4:300")
    assert code == 1
    assert message in errors


@pytest.mark.parametrize(
    "flags",
    [["--columns", "units:4x4:300"], ["--columns", "codes:4x4:300", "--key", "nr"],
     ["--columns", "codes:4x4:300", "--captions", "words"]],
)  # fmt: skip
def test_a_missing_column_is_named(tmp_path, convert, flags):
    source, _ = saved_table(tmp_path, "parquet")
    code, _, errors = convert("hf", source, *flags)
    assert code == 1
    assert re.search(
        r"rows.parquet: no column '(units|nr|words)', only \['codes', 'text', 'url', 'extra'\]",
        errors,
    )


# SeiT ---------------------------------------------------------------------------------------------


def seit_files(folder, codes, labels=None):
    """A stream, written as its reader in naver-ai/seit expects it."""
    data, starts = bytearray(), [0]
    for row in codes:
        for code in row.reshape(-1).tolist():
            data += bytes([255, code - 255]) if code >= 255 else bytes([code])
        starts.append(len(data))
    (folder / "val_data.bin").write_bytes(gzip.compress(bytes(data)))
    (folder / "val_index.npy").write_bytes(gzip.compress(npy(np.array(starts))))
    if labels is not None:
        (folder / "labels.txt").write_text("\n".join(map(str, labels)))
    return folder / "val_data.bin"


@pytest.fixture
def images():
    codes = np.random.default_rng(0).integers(0, 391, (5, 32, 32))
    codes[0, 0, :4] = (254, 255, 256, 390)
    return codes


def test_a_stream_of_seit(tmp_path, convert, out, images):
    path = seit_files(tmp_path, images, [3, 1, 4, 1, 5])
    assert convert("seit", path, "--labels", tmp_path / "labels.txt", "--split", "val")[0] == 0
    dataset = ShardDataset(out, "val")
    assert dataset.columns["image_units"] == UnitColumn((32, 32), 391)
    assert [sample["label"] for sample in dataset] == [3, 1, 4, 1, 5]
    assert [sample.key for sample in dataset] == [f"val-{i}" for i in range(5)]
    np.testing.assert_array_equal([sample.image_units for sample in dataset], images)


def test_escaped_codes():
    coded = np.array([1, 255, 0, 254, 255, 7, 255, 254], np.uint8)
    assert decode(coded).tolist() == [1, 255, 254, 262, 509]


def test_bad_images_of_seit_are_rejects(tmp_path, convert, out, images):
    path = seit_files(tmp_path, [images[0], images[1][:31], images[2] + 100])
    assert convert("seit", path)[0] == 0
    short, large = (row["reason"] for row in rejects(out))
    assert short == "sample 'val-1': column image_units: 992 codes, expected shape (32, 32)"
    assert re.match(r"sample 'val-2': column image_units: code \d+ at .* expected 0 to 390", large)
    path.write_bytes(gzip.compress(b"\xff"))
    (tmp_path / "val_index.npy").write_bytes(gzip.compress(npy(np.array([0, 1]))))
    assert main(["seit", str(path), "--out", str(tmp_path / "o2"), "--quiet"]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "val_index.npy").unlink(), "val_index.npy: no such file"),
        (lambda d: (d / "val_index.npy").write_bytes(b"x"), "val_index.npy: not gzipped, or cut"),
        (
            lambda d: (d / "val_index.npy").write_bytes(gzip.compress(b"x")),
            "val_index.npy: not a .npy file",
        ),
        (
            lambda d: (d / "val_index.npy").write_bytes(gzip.compress(npy(np.array([0, 9**9])))),
            "val_index.npy: no ascending starts within the",
        ),
        (
            lambda d: (d / "val_index.npy").write_bytes(gzip.compress(npy(np.array([5, 1])))),
            "val_index.npy: no ascending starts",
        ),
        (lambda d: (d / "val_data.bin").write_bytes(b"x"), "val_data.bin: not gzipped, or cut"),
        (
            lambda d: (d / "val_data.bin").write_bytes((d / "val_data.bin").read_bytes()[:-20]),
            "val_data.bin: not gzipped, or cut",
        ),
        (lambda d: (d / "labels.txt").write_text("1\n2"), "labels.txt: 2 labels, expected 5"),
        (lambda d: (d / "labels.txt").write_text("dog"), "labels.txt: expected a whole number"),
    ],
)
def test_damaged_streams(tmp_path, convert, images, change, message):
    path = seit_files(tmp_path, images, range(5))
    change(tmp_path)
    code, _, errors = convert("seit", path, "--labels", tmp_path / "labels.txt")
    assert code == 1
    assert message in errors


def test_other_names_are_no_streams(tmp_path, convert):
    code, _, errors = convert("seit", tmp_path / "x.gz")
    assert code == 1
    assert "expected a file that ends with data.bin" in errors


# Back to files, and from dataset to dataset -------------------------------------------------------


def test_export_and_back(tmp_path, convert, out, capsys):
    rows = make_rows(9)
    folder = write_rows(tmp_path / "set", rows)
    assert main(["export", str(folder), "--out", str(tmp_path / "files")]) == 0
    num = sum(len(r["speech_units"]) + (r["image_units"] is not None) for r in rows)
    num += sum(r["audio_units"] is not None for r in rows) + 9
    assert f"written   {num} arrays" in capsys.readouterr().out
    np.testing.assert_array_equal(
        np.load(tmp_path / "files/000000000.image_units.npy"), rows[0]["image_units"]
    )
    columns = []
    for name, kind in COLUMNS.items():
        if isinstance(kind, str):
            columns.append(f"{name}:{kind}")
            continue
        shape = "x".join("T" if size is None else str(size) for size in kind.shape)
        columns.append(f"{name}:{shape}:{kind.num_codes}" + ":many:coded" * kind.many)
    assert convert("npy", tmp_path / "files", "--columns", *columns)[0] == 0
    assert ShardDataset(out).columns == COLUMNS
    for sample, row in zip(ShardDataset(out), rows, strict=True):
        for name, value in row.items():
            found = sample[name]
            if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
                assert [one.tolist() for one in found] == [one.tolist() for one in value]
            elif isinstance(value, np.ndarray):
                np.testing.assert_array_equal(found, value)
            else:
                assert found == value


def test_export_of_one_column_and_split(tmp_path, convert, out):
    rows = [{"key": f"k{i}", "split": ("a", "b")[i % 2], "codes": grid(i)} for i in range(6)]
    folder = write_rows(tmp_path / "set", rows, {"codes": UnitColumn((4, 4), 300)})
    args = ["export", folder, "--split", "b", "--out", tmp_path / "files"]
    assert main(list(map(str, args))) == 0
    assert convert("npy", tmp_path / "files", "--columns", "codes:4x4:300")[0] == 0
    assert [sample.key for sample in ShardDataset(out)] == ["k1", "k3", "k5"]


def test_export_never_writes_over_files(tmp_path, capsys):
    folder = write_rows(tmp_path / "set", [])
    (tmp_path / "files").mkdir()
    (tmp_path / "files/mine").write_text("")
    assert main(["export", str(folder), "--out", str(tmp_path / "files")]) == 1
    assert "files: exists and is not empty; choose another folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "files").iterdir()] == ["mine"]


def test_concatenate_and_split(tmp_path, capsys):
    for name in "ab":
        rows = [{"key": f"{name}{i}", "split": ("x", "y")[i % 2], "n": i} for i in range(4)]
        write_rows(tmp_path / name, rows, {"n": "int"})

    def run(*args):
        code = main([str(tmp_path / one) if len(one) <= 2 else one for one in args])
        assert code == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "written   8 samples to" in run("concatenate", "a", "b", "--out", "c")
    assert ShardDataset(tmp_path / "c").manifest.splits == {"x": 4, "y": 4}
    assert "written   2 samples" in run("concatenate", "a", "--split=y", "--out", "d")
    run("split", "c", "--shares", "new=0.5", "old=0.5", "--seed=3", "--out", "e")
    assert set(ShardDataset(tmp_path / "e").manifest.splits) == {"new", "old"}
    run("split", "c", "--out", "f")
    shards = ShardDataset(tmp_path / "f").manifest.shards
    assert [list(shard.splits) for shard in shards] == [["x"], ["y"]]


# Usage --------------------------------------------------------------------------------------------

SPEC_FORM = r"expected NAME\[=FIELD\]:SHAPE:CODES"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--columns", "image_units"], f"--columns image_units: {SPEC_FORM}"),
        (["--columns", "a=:4:9"], SPEC_FORM),
        (["--columns", "a:4xZ:9"], SPEC_FORM),
        (["--columns", "a:4:x"], SPEC_FORM),
        (["--columns", "a:4"], SPEC_FORM),
        (["--columns", "a:4:9:most"], SPEC_FORM),
        (["--columns", "a:4:9:coded:varint"], SPEC_FORM),
        (["--columns", "a:string:x"], SPEC_FORM),
        (["--columns", "a:0x4:9"], "--columns a:0x4:9: an axis of shape is 0"),
        (["--columns", "a:4:0"], "--columns a:4:0: num_codes is 0"),
        (["--columns", "a:4:9", "a:5:9"], "--columns: a is given twice"),
        (["--columns", "a:string"], "--columns: no unit column; expected NAME"),
        (["--columns", "a:4:9", "--tokenizers", "x"], "--tokenizers x: expected NAME=TOKENIZER"),
        (["--columns", "a:4:9", "--codebooks", "a="], "--codebooks a=: expected NAME=FILE.npy"),
        (["--columns", "a:4:9", "--samples-per-shard", "0"], "--samples-per-shard is 0"),
    ],
)
def test_wrong_flags_are_wrong_usage(convert, flags, message):
    code, _, errors = convert("npy", "x", *flags)
    assert code == 2
    assert re.search(message, errors)


@pytest.mark.parametrize("shares", ["train", "train=much"])
def test_wrong_shares_are_wrong_usage(convert, shares):
    code, _, errors = convert_split(convert, shares)
    assert code == 2
    assert "--shares" in errors
    assert "expected such as train=0.9 val=0.1" in errors


def convert_split(convert, shares):
    return convert("split", "x", "--shares", shares, quiet=False)


def test_a_column_name_that_the_format_refuses(tmp_path, convert):
    folder = fill(tmp_path / "in", {"a.npy": npy(grid(0))})
    code, _, errors = convert("npy", folder, "--columns", "Image:4x4:300")
    assert code == 1
    assert "column 'Image': expected a name of lower-case letters" in errors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros((300, 2))), None),
        (npy(np.zeros((9, 2))), "codebook of float64 and shape (9, 2), expected finite floats"),
        (b"x", "book.npy: not a .npy file of numbers"),
    ],
)
def test_codebooks(tmp_path, convert, out, content, message):
    folder = fill(tmp_path / "in", {"a.npy": npy(grid(0))})
    (tmp_path / "book.npy").write_bytes(content)
    flags = ["--codebooks", f"image_units={tmp_path / 'book.npy'}"]
    code, _, errors = convert("npy", folder, "--columns", IMAGES, *flags)
    assert code == (0 if message is None else 1)
    if message is None:
        assert ShardDataset(out).codebook().shape == (300, 2)
    else:
        assert message in errors


def test_an_existing_dataset_stays(tmp_path, capsys):
    folder = fill(tmp_path / "in", {"a.npy": npy(grid(0))})
    out = write_rows(tmp_path / "set", [])
    before = (out / "dataset.json").read_bytes()
    args = ["npy", str(folder), "--columns", IMAGES, "--out", str(out), "--quiet"]
    assert main(args) == 1
    assert "set: holds a dataset.json; choose another folder" in capsys.readouterr().err
    assert (out / "dataset.json").read_bytes() == before


def test_json(tmp_path, convert, out):
    folder = fill(tmp_path / "in", {"a.npy": npy(grid(0)), "b.npy": b"", "c.jpg": b""})
    code, text, _ = convert("npy", folder, "--columns", IMAGES, "--json", quiet=False)
    found = json.loads(text)
    assert (code, found["num_samples"], found["num_rejects"]) == (0, 1, 2)
    assert found["unused"] == {".jpg": 1}
    assert found["size_bytes"] == (out / "00000.arrow").stat().st_size


def test_it_runs_as_a_program_without_torch(tmp_path):
    fill(tmp_path / "in", {"a.npy": npy(grid(0))})
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['convert.py', 'npy', {str(tmp_path / 'in')!r}, '--columns', {IMAGES!r},"
        f" '--out', {str(tmp_path / 'out')!r}, '--quiet'];"
        "runpy.run_path('tools/convert.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False\n")
