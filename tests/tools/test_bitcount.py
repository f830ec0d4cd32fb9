"""The parts that bitcount lists are what lies on disk, byte for byte, in every layout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from im2sp.shards import (
    DatasetWriter,
    Layout,
    Sample,
    ShardDataset,
    UnitColumn,
    fit_durations_codec,
    fit_speech_codec,
)
from im2sp.shards.coding import make_codecs
from im2sp.shards.schema import DEFAULT_COLUMNS
from im2sp.tools.bitcount import count_bits, main
from im2sp.tools.inspection.sizes import checksum_bytes
from support.datasets import make_rows, make_samples, write_dataset, write_rows

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = [
    Layout(),
    Layout(kind="webdataset"),
    Layout(kind="webdataset", samples_per_member=16),
    Layout(kind="webdataset", samples_per_member=1),
]


def append(path):
    path.write_bytes(path.read_bytes() + b"x")


@pytest.fixture
def dataset_dir(tmp_path):
    return write_dataset(tmp_path, make_samples(7))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"{x.kind}-{x.samples_per_member}")
def test_parts_add_up_to_the_bytes_on_disk(tmp_path, layout):
    rejects = b'{"file": "bad.jpg", "reason": "cut"}\n'
    samples = make_samples(40, speech=True)
    write_dataset(tmp_path, samples, layout, rejects)
    count = count_bits(tmp_path)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert count.total_bytes + count.codebook_bytes == on_disk
    assert count.codebook_bytes == 5000
    assert count.parts["tables"] == 0  # plain codecs have none
    assert min(size for part, size in count.parts.items() if part != "tables") > 0
    assert count.parts["image_units"] == 40 * 1274
    assert count.parts["text"] == sum(len(c.encode()) for s in samples for c in s.captions)
    assert count.parts["keys"] == sum(len(s.key.encode()) + len(s.split) for s in samples)
    codecs = make_codecs(DEFAULT_COLUMNS)
    assert count.parts["durations"] == sum(
        len(codecs.durations.encode(d)) for s in samples for d in s.durations
    )
    assert count.speech_frames == sum(int(d.sum()) for s in samples for d in s.durations)


def test_columns_are_counted_in_their_own_codecs(tmp_path):
    samples = make_samples(9, speech=True)
    columns = DEFAULT_COLUMNS | {
        "speech_units": fit_speech_codec([u for s in samples for u in s.speech_units], 200),
        "durations": fit_durations_codec([d for s in samples for d in s.durations]),
    }
    write_dataset(tmp_path, samples, columns=columns)
    count = count_bits(tmp_path)
    codecs = make_codecs(columns)
    for part in ("speech_units", "durations"):
        codec = getattr(codecs, part)
        assert count.parts[part] == sum(
            len(codec.encode(u)) for s in samples for u in getattr(s, part)
        )
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert count.total_bytes + count.codebook_bytes == on_disk
    tables = sum(len(columns.get("lengths", "")) for columns in columns.values())
    assert count.parts["tables"] == 5 * tables  # dataset.json, and twice in each of two shards
    assert count.image_side_bytes == sum(
        count.parts[part] for part in ("image_units", "keys", "container", "checksums")
    )


def test_files_that_are_not_the_datasets_are_not_counted(dataset_dir):
    before = count_bits(dataset_dir)
    (dataset_dir / "notes.txt").write_text("mine")
    (dataset_dir / "rejects.jsonl").write_text("left over, the manifest knows of no reject")
    assert count_bits(dataset_dir) == before


def test_figures_a_picture_are_the_papers(dataset_dir):
    row = count_bits(dataset_dir).as_json()
    assert row["unit_bits_per_image"] == 784 * 13
    assert row["image_units_of_raw"] == pytest.approx(0.0084635, rel=1e-4)
    assert row["paper_image_of_raw"] == row["image_units_of_raw"]
    assert row["image_files_of_raw"] == pytest.approx(8 * 10_000 / (224 * 224 * 24))
    assert row["image_bytes_per_image"] == pytest.approx(row["without_text_bytes"] / 7)
    assert row["speech_on_disk_of_raw"] is None


def test_checksums_are_found_where_the_manifest_has_them():
    node = {
        "manifest_sha256": "ab",
        "shards": [{"crc32": 12345, "size_bytes": 7, "batches": [{"crc32": 1}]}],
        "rejects_sha256": None,
        "fingerprint": "not a checksum",
    }
    assert checksum_bytes(node) == 4 + 5 + 1


def test_speech_rows_show_where_there_is_speech(tmp_path, capsys):
    write_dataset(tmp_path, make_samples(6, speech=True))
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "12 utterances" in text
    assert "raw audio (16 kHz x 16 bits)" in text
    count = count_bits(tmp_path)
    assert "original files" in text  # of the images; of the sound the manifest knows nothing
    assert text.count("original files") == 1
    share = 8 * count.speech_bytes / (count.speech_frames * 320 * 16)
    assert count.as_json()["speech_on_disk_of_raw"] == pytest.approx(share)


def test_speech_rows_know_the_length_and_the_files_from_the_manifest(tmp_path, capsys):
    samples = make_samples(6, speech=True)
    frames = sum(int(runs.sum()) for sample in samples for runs in sample.durations)
    num_samples = 320 * frames + 12 * 239  # what is left of each of the 12 clips
    raw = {"num_images": 6, "image_file_bytes": 9, "num_utterances": 12,
           "audio_samples": num_samples, "audio_file_bytes": num_samples}  # fmt: skip
    write_dataset(tmp_path, samples, raw=raw)
    count = count_bits(tmp_path)
    row = count.as_json()
    bits = 16 * num_samples
    num_units = sum(len(units) for sample in samples for units in sample.speech_units)
    assert (row["raw_speech_bits"], row["num_speech_units"]) == (bits, num_units)
    assert row["audio_files_of_raw"] == 0.5
    assert row["speech_units_of_raw"] == 8 * num_units / bits
    assert row["speech_units_on_disk_of_raw"] == 8 * count.parts["speech_units"] / bits
    assert row["durations_on_disk_of_raw"] == 8 * count.parts["durations"] / bits
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"12 utterances ({num_samples / 16_000 / 3600:.2f} hours)" in text
    line = next(line for line in text.splitlines() if line.startswith("speech units (8 bits each)"))
    share, of_files = 100 * 8 * num_units / bits, 100 * num_units / num_samples
    assert f"{share:.3f} %" in line
    assert line.endswith(f"{of_files:.3f} %")
    assert text.count("original files") == 2
    for name in ("speech units on disk", "durations on disk", "codec tables on disk"):
        assert name in text


def test_speech_without_durations_has_no_raw_length(tmp_path, capsys):
    write_dataset(tmp_path, make_samples(4, speech=True, durations=False))
    assert main([str(tmp_path)]) == 0
    assert "raw length unknown" in capsys.readouterr().out
    assert count_bits(tmp_path).as_json()["raw_speech_bits"] is None


def test_speech_alone_needs_no_picture(tmp_path, capsys):
    write_dataset(tmp_path, make_samples(4, speech=True, images=False))
    assert main([str(tmp_path)]) == 0
    assert "bits per image" not in capsys.readouterr().out
    assert count_bits(tmp_path).as_json()["image_bytes_per_image"] is None


def test_json_holds_the_parts_and_their_sum(dataset_dir, capsys):
    assert main([str(dataset_dir), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert sum(row["parts"].values()) == row["total_bytes"]
    assert row["num_images"] == row["num_samples"] == 7


def test_the_table_names_each_part(dataset_dir, capsys):
    assert main([str(dataset_dir)]) == 0
    text = capsys.readouterr().out
    for name in (
        "image units",
        "captions",
        "keys and splits",
        "container",
        "checksums",
        "codebook",
    ):
        assert name in text
    assert "0.846 %" in text
    assert max(map(len, text.splitlines()[1:])) <= 100  # the first line has the folder's name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "dataset.json").unlink(), "dataset.json: no such file"),
        (lambda d: (d / "00001.arrow").unlink(), "00001.arrow"),
        (lambda d: (d / "codebook.safetensors").unlink(), "codebook.safetensors: missing"),
        (lambda d: os.truncate(d / "00001.arrow", 900), "00001.arrow"),
        (lambda d: append(d / "00001.arrow"), "00001.arrow.*bytes"),
        (lambda d: os.truncate(d / "dataset.json", 300), "dataset.json: not JSON"),
    ],
)
def test_bad_data_is_one_line_and_exit_code_1(dataset_dir, capsys, damage, message):
    damage(dataset_dir)
    assert main([str(dataset_dir)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert re.search(message, shown.err)


def test_wrong_usage_is_exit_code_2(capsys):
    assert main(["shards", "--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err


def test_it_runs_as_a_program_without_torch(dataset_dir):
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['bitcount.py', {str(dataset_dir)!r}];"
        "runpy.run_path('tools/bitcount.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert "7 samples, 7 images" in done.stdout


def test_a_dataset_that_does_not_know_its_files_leaves_their_row_out(tmp_path, capsys):
    write_dataset(tmp_path, make_samples(4), raw={})
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "original files" not in text
    assert "raw pixels" in text
    assert count_bits(tmp_path).as_json()["image_on_disk_of_files"] is None


def foreign_dataset(folder, **fields):
    """16 x 16 units of 14 bits, and speech units below 1,000."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            key=str(i),
            image_units=rng.integers(0, 16384, (16, 16), np.uint16),
            speech_units=[rng.integers(0, 1000, 50, np.uint16)],
            durations=[np.full(50, 2, np.uint16)],
        )
        for i in range(4)
    ]
    columns = {
        "image_units": {"codec": "packed", "bits": 14, "count": 256, "shape": [16, 16]},
        "speech_units": {"codec": "packed", "bits": 10},
        "durations": {"codec": "varint", "minimum": 1},
    }
    return write_dataset(folder, samples, columns=columns, image_tokenizer=None, **fields)


def test_other_units_have_no_row_of_the_paper(tmp_path, capsys):
    foreign_dataset(tmp_path)
    assert main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "image units (16 x 16 x 14 bits)" in text
    assert "speech units (10 bits each)" in text
    assert "the paper" not in text
    assert "raw pixels" not in text
    assert "raw size unknown: give the size of the images with --image-size" in text
    row = count_bits(tmp_path).as_json()
    assert row["unit_bits_per_image"] == 256 * 14
    for name in ("raw_image_bits", "image_units_of_raw", "paper_image_of_raw"):
        assert row[name] is None
    assert row["paper_speech_of_raw_below"] is None
    assert row["speech_units_of_raw"] == 10 * 50 / (100 * 320 * 16)


def test_the_size_of_the_images_is_given_or_recorded(tmp_path, capsys):
    foreign_dataset(tmp_path, raw={"image_pixels": 4 * 512 * 384})
    assert count_bits(tmp_path).as_json()["raw_image_bits"] == 4 * 512 * 384 * 24
    assert main([str(tmp_path)]) == 0
    assert "raw pixels (196,608 pixels x 24 bits)" in capsys.readouterr().out
    assert main([str(tmp_path), "--image-size", "256x256", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["image_units_of_raw"] == 256 * 14 / (256 * 256 * 24)
    assert main([str(tmp_path), "--image-size", "256x256"]) == 0
    assert "raw pixels (256 x 256 x 24 bits)" in capsys.readouterr().out


def test_tables_of_version_2_are_counted_apart_from_the_codebook(tmp_path):
    columns = {
        "image_units": UnitColumn(shape=(1, 2), num_codes=4, coding="coded"),
        "speech_units": UnitColumn(shape=(None,), num_codes=20, many=True, coding="coded"),
    }
    vectors = {"image_units": np.zeros((4, 3), np.float32)}
    with DatasetWriter(tmp_path / "set", columns=columns, codebooks=vectors) as writer:
        writer.write(key="a", image_units=[[1, 2]], speech_units=[[1, 2, 3]])
    tensors = ShardDataset(tmp_path / "set").tensors()
    tables = tensors.pop("speech_units.lengths").nbytes
    count = count_bits(tmp_path / "set")
    names = [path for path in (tmp_path / "set").iterdir() if path.suffix != ".md"]
    assert count.parts["tables"] == tables > 0
    assert count.total_bytes + count.codebook_bytes == sum(path.stat().st_size for path in names)
    others = sum(tensor.nbytes for tensor in tensors.values())  # tables of images, and codebook
    assert others < count.codebook_bytes < others + 2000  # with names and shapes


@pytest.mark.parametrize("size", ["256", "256x", "0x5", "-1x3", "1e3x2"])
def test_wrong_image_sizes_are_refused(capsys, size):
    assert main(["shards", f"--image-size={size}"]) == 2
    assert f"--image-size is {size!r}; expected width and height" in capsys.readouterr().err


def test_other_columns_are_listed(tmp_path, capsys):
    folder = write_rows(tmp_path / "set", make_rows())
    count = count_bits(folder)
    on_disk = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".md")
    assert count.total_bytes + count.codebook_bytes == on_disk
    assert count.parts["wide_units"] == 12 * 16
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert "image units (16 x 16 x 14 bits)" in text
    assert re.search(r"wide_units \(4 x 32 bits\) +128 +128 +100\.000 %", text)
    assert re.search(r"audio_units \(8 x T x 11 bits\) ", text)
    assert re.search(r"\ntables \(column\) +96 ", text)


def test_a_dataset_without_images_and_speech(tmp_path, capsys):
    columns = {"text": "string", "line": UnitColumn((32,), 4096)}
    rows = [{"key": str(i), "text": "abc", "line": range(32)} for i in range(3)]
    folder = write_rows(tmp_path / "set", rows, columns)
    assert main([str(folder)]) == 0
    text = capsys.readouterr().out
    assert "bits per image" not in text
    assert "bits per second" not in text
    assert re.search(r"line \(32 x 12 bits\) +384 +384 +100\.000 %", text)
    count = count_bits(folder)
    assert (count.parts["text"], count.parts["text (column)"]) == (0, 9)
    assert count.as_json()["image_bytes_per_image"] is None
