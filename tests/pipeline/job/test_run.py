import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from im2sp.pipeline import load_image_tokenizer
from im2sp.pipeline.decoding.images import read_image
from im2sp.pipeline.decoding.views import VIEWS
from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
from im2sp.pipeline.job.decode_pool import Decoded
from im2sp.pipeline.job.encode import MediaEncoder
from im2sp.pipeline.job.run import JobConfig, run_job
from im2sp.pipeline.job.state import Tally
from im2sp.pipeline.sources.items import SourceItem, Utterance
from im2sp.pipeline.summary import summary, summary_json
from im2sp.shards import ShardDataset, verify_dataset

PACKED = {"layout": "webdataset", "samples_per_member": 3}
PLAIN = {"layout": "webdataset", "samples_per_member": 1}


def run(source, out, tokenizer, **settings):
    settings = {"num_workers": 1, "quiet": True, "samples_per_shard": 8} | settings
    return run_job(JobConfig(source=source, dataset_dir=out, **settings), tokenizer)


def units_of(tokenizer, path, view="squash-224"):
    pixels = VIEWS[view].apply(read_image(path, name=path.name))
    return VIEWS[view].crop_units(tokenizer.encode_uint8(pixels[None])).numpy()[0]


def check_sound(out):
    assert [str(problem) for problem in verify_dataset(out)] == []
    assert not (out / ".im2sp-job").exists()
    assert not list(out.glob("*.tmp"))


# Sources ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(draw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draw(folder / "a", 5)
    draw(folder / "b", 4, broken=[1])
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.parametrize(
    "view", ["squash-224", "squash-256-crop", "center-224-mirrored", "random-224-8"]
)
def test_a_folder_with_real_workers_reads_back_what_the_tokenizer_gives(
    pictures, tiny_checkpoint, tmp_path, view
):
    tokenizer = load_image_tokenizer(tiny_checkpoint)
    assert isinstance(tokenizer, ImageTokenizer)
    settings = {"view": view}
    if view == "random-224-8":
        settings = {"view": "random-224", "view_seed": 8}
    result = run(pictures, tmp_path / "out", tokenizer, **settings, num_workers=2)
    check_sound(tmp_path / "out")
    dataset = ShardDataset(tmp_path / "out")
    assert [sample.key for sample in dataset] == [
        "a/000", "a/001", "a/002", "a/003", "a/004", "b/000", "b/002", "b/003",
    ]  # fmt: skip
    for sample in dataset:
        expected = units_of(tokenizer, pictures / f"{sample.key}.png", view)
        np.testing.assert_array_equal(sample.image_units, expected)
        assert (sample.split, sample.captions) == ("", [])
    (reject,) = map(json.loads, (tmp_path / "out/rejects.jsonl").read_text().splitlines())
    assert set(reject) == {"file", "reason"}
    assert reject["file"] == "b/001.png"
    assert (result.num_encoded, result.manifest.num_rejects) == (8, 1)
    assert result.inputs.ignored == {".txt": 1}
    np.testing.assert_array_equal(dataset.codebook(), tokenizer.codebook.numpy())
    tokenizer_note = dataset.manifest.image_tokenizer
    assert tokenizer_note["fingerprint"] == tokenizer.fingerprint
    assert (tokenizer_note["name"], tokenizer_note["view"]) == ("tiny.safetensors", view)
    sizes = [path.stat().st_size for path in pictures.rglob("*.png") if path.parts[-2:] != (
        "b", "001.png")]  # fmt: skip
    assert dataset.manifest.raw == {"num_images": 8, "image_file_bytes": sum(sizes)}


@pytest.mark.usefixtures("inline_pool")
def test_a_tar(pictures, fake_tokenizer, tmp_path):
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        tar.add(pictures / "b", arcname="b")
    run(tmp_path / "p.tar", tmp_path / "out", fake_tokenizer)
    dataset = ShardDataset(tmp_path / "out")
    assert sorted(sample.key for sample in dataset) == ["b/000", "b/002", "b/003"]
    for sample in dataset:
        expected = units_of(fake_tokenizer, pictures / f"{sample.key}.png")
        np.testing.assert_array_equal(sample.image_units, expected)
    assert json.loads((tmp_path / "out/rejects.jsonl").read_text())["file"] == "p.tar/b/001.png"


@pytest.mark.usefixtures("inline_pool")
def test_a_karpathy_file(pictures, fake_tokenizer, tmp_path):
    entries = [
        {
            "filename": f"00{i}.png",
            "split": split,
            "sentences": [{"raw": f"{i} one "}, {"raw": "two \u00e9"}],
        }
        for i, split in enumerate(["train", "restval", "train"])
    ]
    entries.append({"filename": "gone.png", "split": "val", "sentences": []})
    path = tmp_path / "dataset_x.json"
    path.write_text(json.dumps({"images": entries}))
    result = run(path, tmp_path / "out", fake_tokenizer, image_root=pictures / "a")
    check_sound(tmp_path / "out")
    dataset = ShardDataset(tmp_path / "out")
    assert [(s.key, s.split, s.captions) for s in dataset] == [
        ("000", "train", ["0 one ", "two \u00e9"]),
        ("001", "restval", ["1 one ", "two \u00e9"]),
        ("002", "train", ["2 one ", "two \u00e9"]),
    ]
    assert dataset.manifest.splits == {"train": 2, "restval": 1}
    assert len(ShardDataset(tmp_path / "out", split="train")) == 2
    assert result.manifest.num_rejects == 1


ROWS = [
    {"key": "k/one", "image": "a/000.png", "caption": "first", "split": "train"},
    {"key": "k/two", "image": "a/001.png", "caption": "", "split": ""},
    {"key": "k/one", "image": "a/000.png", "caption": "again", "split": "train"},
    {"key": "\u00fc \U0001f600" + "x" * 300, "image": "a/002.png", "caption": "c", "split": "val"},
    {"key": "../../k", "image": "b/000.png", "caption": "d", "split": "val"},
]


def write_list(path):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif path.suffix == ".csv":
        lines = [",".join(ROWS[0]), *(",".join(row.values()) for row in ROWS)]
        path.write_text("\n".join(lines) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.usefixtures("inline_pool")
@pytest.mark.parametrize("layout", [{}, PACKED, PLAIN], ids=["arrow", "packed", "plain"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_list(pictures, fake_tokenizer, tmp_path, suffix, layout):
    path = tmp_path / f"list{suffix}"
    write_list(path)
    run(path, tmp_path / "out", fake_tokenizer, image_root=pictures, **layout)
    check_sound(tmp_path / "out")
    dataset = ShardDataset(tmp_path / "out")
    assert [(s.key, s.split, s.captions) for s in dataset] == [
        ("k/one", "train", ["first", "again"]),
        ("k/two", "", []),
        (ROWS[3]["key"], "val", ["c"]),
        ("../../k", "val", ["d"]),
    ]
    np.testing.assert_array_equal(
        dataset[3].image_units, units_of(fake_tokenizer, pictures / "b/000.png")
    )
    assert {p.name for p in tmp_path.iterdir()} == {"out", path.name}


@pytest.mark.usefixtures("inline_pool")
def test_all_refused_is_an_empty_dataset(draw, fake_tokenizer, tmp_path):
    draw(tmp_path / "p", 3, broken=[0, 1, 2])
    result = run(tmp_path / "p", tmp_path / "out", fake_tokenizer)
    check_sound(tmp_path / "out")
    assert (len(ShardDataset(tmp_path / "out")), result.manifest.num_rejects) == (0, 3)
    assert "3, listed with reasons in" in summary(tmp_path / "p", tmp_path / "out", result)


@pytest.mark.usefixtures("inline_pool", "small_chunks")
def test_a_shard_of_refused_inputs_leaves_a_gap(draw, fake_tokenizer, tmp_path):
    draw(tmp_path / "p", 20, broken=range(8, 16))
    run(tmp_path / "p", tmp_path / "out", fake_tokenizer)
    check_sound(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.arrow"))
    assert names == ["00000.arrow", "00002.arrow"]
    assert len(ShardDataset(tmp_path / "out")) == 12


def test_broken_images_are_refused_and_the_rest_is_done(shared_data, tiny_checkpoint, tmp_path):
    entries = json.loads((shared_data / "broken/manifest.json").read_text())
    entries = [entry for entry in entries if entry["kind"] == "image"]
    source = shared_data / "broken"
    tokenizer = load_image_tokenizer(tiny_checkpoint)
    run(source, tmp_path / "out", tokenizer, num_workers=2, only="images")
    check_sound(tmp_path / "out")
    rejects = [json.loads(row) for row in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    refused = {row["file"].rsplit("/", 1)[-1] for row in rejects}
    assert all(row["reason"] and row["file"] not in row["reason"] for row in rejects)
    keys = {sample.key for sample in ShardDataset(tmp_path / "out")}
    stems = {key.rsplit("/", 1)[-1] for key in keys}
    plain = [e for e in entries if "archive" not in e]
    suffixes = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
    listed = [e for e in plain if e["file"].lower().endswith(suffixes)]
    assert len(listed) > 40
    for entry in listed:
        name = Path(entry["file"]).name
        if entry["expect"] == "ok":
            assert name not in refused, entry
            assert {name, Path(name).stem} & stems, entry
        elif entry["expect"] == "reject":
            assert name in refused, entry


# The summary --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inline_pool", "small_chunks")
def test_the_summary_counts_right(twenty, fake_tokenizer, tmp_path):
    (twenty / "x.txt").write_text("")
    out = tmp_path / "out"
    result = run(twenty, out, fake_tokenizer)
    files = [p for p in out.iterdir() if p.suffix not in (".safetensors", ".md")]
    size_bytes = sum(p.stat().st_size for p in files)
    text = summary(twenty, out, result)
    assert f"read      22 inputs of {twenty} (folder); encoded 20 in " in text
    assert f"refused   2, listed with reasons in {out / 'rejects.jsonl'}" in text
    assert "ignored   1 file (1 .txt)" in text
    share = 8 * size_bytes / 20 / (224 * 224 * 24)
    assert (
        f"written   20 samples in 3 shards to {out}, {size_bytes:,} bytes: "
        f"{size_bytes / 20:,.0f} an image, {share:.2%} of the raw bits" in text
    )
    assert f"tokenizer fake (fp32, fingerprint {fake_tokenizer.fingerprint[:12]}), view squash-224"
    content = json.loads(summary_json(out, result))
    assert content.pop("encode_s") > 0
    assert content == {
        "out": str(out),
        "was_finished": False,
        "num_inputs": 22,
        "num_ignored": 1,
        "notes": [],
        "splits": {"": 20},
        "num_refused": 2,
        "num_samples": 20,
        "num_shards": 3,
        "num_encoded": 20,
        "num_utterances_encoded": 0,
        "audio_encoded_s": 0.0,
        "size_bytes": size_bytes,
        "raw": {"num_images": 20, "image_file_bytes": result.manifest.raw["image_file_bytes"]},
        "image_tokenizer": dict(result.manifest.image_tokenizer),
        "speech_tokenizer": None,
    }


@pytest.mark.usefixtures("inline_pool")
def test_one_of_each_is_singular(draw, fake_tokenizer, tmp_path):
    draw(tmp_path / "p", 2, broken=[1])
    text = summary(tmp_path, tmp_path / "out", run(tmp_path / "p", tmp_path / "out",
                                                   fake_tokenizer))  # fmt: skip
    assert "refused   1, listed with reason in" in text
    assert "written   1 sample in 1 shard to" in text
    assert "ignored" not in text


@pytest.mark.usefixtures("inline_pool")
def test_the_bar_shows_rate_time_left_and_refused(twenty, fake_tokenizer, tmp_path, capsys):
    run(twenty, tmp_path / "out", fake_tokenizer, quiet=False)
    shown = capsys.readouterr()
    assert shown.out == ""
    last = shown.err.split("\r")[-1]
    assert "22/22" in last
    assert "images/s, refused=2]" in last


def gpu_encoder(tokenizer, speech=None):
    """An encoder with the grouping and the thread of a GPU."""
    encoder = MediaEncoder(tokenizer, speech, "squash-224")
    encoder._is_cpu, encoder._batch_inputs = False, 4
    return encoder


def encoded(encoder, items, decoded):
    tally, done = Tally(), []
    samples = encoder.encode(items, iter(decoded), tally, done.append)
    return samples, tally, done


def test_images_encoded_in_a_thread_are_the_same(fake_tokenizer, fake_speech):
    random = np.random.default_rng(0)
    items, decoded = [], []
    for number in range(10):
        clip = Utterance(name=f"{number}.wav", audio="x.wav")
        clips = (clip,) if number % 3 else ()
        items.append(SourceItem(key=str(number), image="x", name=str(number), utterances=clips))
        pixels = random.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        decoded.append(Decoded(pixels=pixels, size_bytes=number + 1))
        waveform = random.normal(0, 0.1, 4000).astype(np.float32)
        decoded += [Decoded(waveform=waveform, size_bytes=3) for _ in clips]
    decoded[0] = Decoded(reason="damaged")
    expected = encoded(MediaEncoder(fake_tokenizer, fake_speech, "squash-224"), items, decoded)
    samples, tally, done = encoded(gpu_encoder(fake_tokenizer, fake_speech), items, decoded)
    assert done == [4, 4, 2]
    assert tally == expected[1]
    assert [sample.key for sample in samples] == [str(number) for number in range(1, 10)]
    for one, other in zip(samples, expected[0], strict=True):
        np.testing.assert_array_equal(one.image_units, other.image_units)
        np.testing.assert_array_equal(one.speech_units, other.speech_units)


def test_an_error_in_the_thread_ends_the_job(fake_tokenizer):
    def fail(_):
        raise MemoryError("CUDA out of memory")

    fake_tokenizer.encode_uint8 = fail
    items = [SourceItem(key=str(number), image="x", name=str(number)) for number in range(9)]
    pixels = [Decoded(pixels=np.zeros((224, 224, 3), np.uint8)) for _ in items]
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        encoded(gpu_encoder(fake_tokenizer), items, pixels)
