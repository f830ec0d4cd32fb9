"""The dataset card: its front matter is what `datasets` reads, and a user's README.md stays."""

import re
from dataclasses import replace

import pytest
import yaml

from im2sp.shards import DatasetWriter, Manifest, UnitColumn, verify_dataset
from im2sp.shards.writing.card import CARD_NAME, card, write_card


def front_matter(text):
    match = re.match(r"---\n(.*?)---\n", text, re.S)
    return yaml.safe_load(match[1])


def files_by_split(text):
    (config,) = front_matter(text)["configs"]
    return {one["split"]: one["path"] for one in config["data_files"]}


@pytest.fixture
def manifest(tmp_path, make_samples, write_dataset):
    """Ten samples in two shards, each with several splits."""
    return write_dataset(tmp_path, make_samples(10), shard_rows=5, with_extras=True)


def resplit(manifest, *splits):
    """The manifest with one split a shard."""
    shards = [
        replace(shard, splits={split: shard.num_samples})
        for shard, split in zip(manifest.shards, splits, strict=True)
    ]
    totals = {}
    for shard, split in zip(shards, splits, strict=True):
        totals[split] = totals.get(split, 0) + shard.num_samples
    return replace(manifest, shards=shards, splits=totals)


def test_front_matter(manifest):
    found = front_matter(card(manifest))
    assert found["size_categories"] == ["n<1K"]
    assert found["tags"] == ["im2sp"]
    assert "license" not in found
    assert files_by_split(card(manifest)) == {"mixed": ["00000.arrow", "00001.arrow"]}


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "val"), {"train": ["00000.arrow"], "val": ["00001.arrow"]}),
        (("val", "val"), {"val": ["00000.arrow", "00001.arrow"]}),
        (("", ""), {"train": ["00000.arrow", "00001.arrow"]}),
        (("true", "1.0"), {"1.0": ["00001.arrow"], "true": ["00000.arrow"]}),
        (("all", "val"), {"mixed": ["00000.arrow", "00001.arrow"]}),
        (("val-1", "val"), {"mixed": ["00000.arrow", "00001.arrow"]}),
        (("é: [x]", "val"), {"mixed": ["00000.arrow", "00001.arrow"]}),
    ],
)
def test_shards_of_one_split_are_that_split_on_the_hub(manifest, splits, expected):
    assert files_by_split(card(resplit(manifest, *splits))) == expected


def test_a_dataset_without_samples_has_no_files(manifest):
    text = card(replace(manifest, num_samples=0, splits={}, shards=()))
    assert "configs" not in front_matter(text)
    assert "0 samples in 0 shards" in text


def test_sizes(manifest):
    def size(num):
        fake = object.__new__(Manifest)
        fake.__dict__.update(manifest.__dict__ | {"num_samples": num})
        return front_matter(card(fake))["size_categories"][0]

    numbers = [999, 1000, 10**4, 10**6, 10**9 - 1, 10**9, 10**13]
    assert [size(num) for num in numbers] == [
        "n<1K", "1K<n<10K", "10K<n<100K", "1M<n<10M", "100M<n<1B", "1B<n<10B", "n>1T",
    ]  # fmt: skip


def test_the_text_lists_columns_and_tokenizers(manifest):
    text = card(manifest)
    assert "10 samples in 2 shards, " in text
    assert (
        "| `image_units` | 28 x 28 units below 8,192, packed | `compact`, `000000000000..` |"
        in text
    )
    assert "| `speech_units` | list of T units below 256, packed |  |" in text
    assert "| `durations` | list of T units below 65,536, varint |  |" in text


def test_columns_of_version_2(tmp_path):
    columns = {
        "audio_units": UnitColumn((8, None), 2048),
        "speech_units": UnitColumn((None,), 200, many=True, coding="coded"),
        "url": "string",
    }
    settings = {"columns": columns, "tokenizers": {"audio_units": {"name": "mimi"}}}
    with DatasetWriter(tmp_path / "set", **settings) as writer:
        writer.write(key="a", audio_units=[[1]] * 8, speech_units=[[1, 2]], url="x")
    text = (tmp_path / "set" / CARD_NAME).read_text()
    assert text == card(writer.manifest)
    assert "| `audio_units` | 8 x T units below 2,048, packed | `mimi` |" in text
    assert "| `speech_units` | list of T units below 200, huffman |  |" in text
    assert "| `url` | string |  |" in text
    assert files_by_split(text) == {"train": ["00000.arrow"]}


def test_a_writer_that_failed_leaves_no_card_and_keeps_a_readme(tmp_path):
    out = tmp_path / "set"
    out.mkdir()
    (out / CARD_NAME).write_text("mine")
    with DatasetWriter(out, columns={"url": "string"}) as writer:
        writer.write(key="a", url="x")
    assert (out / CARD_NAME).read_text() == "mine"
    with (
        pytest.raises(KeyError),
        DatasetWriter(tmp_path / "b", columns={"url": "string"}) as writer,
    ):
        raise KeyError
    assert not (tmp_path / "b").exists()


def test_hostile_names_stay_in_their_cell(manifest):
    name = "a`b|c\n---\n# <script>"
    text = card(replace(manifest, image_tokenizer={"name": name, "fingerprint": "f|\n"}))
    assert "| `a b c --- # <script>`, `f ..` |" in text


def test_the_same_manifest_gives_the_same_bytes_and_verify_accepts_them(tmp_path, manifest):
    assert write_card(tmp_path, manifest)
    first = (tmp_path / CARD_NAME).read_bytes()
    assert write_card(tmp_path, manifest)
    assert (tmp_path / CARD_NAME).read_bytes() == first
    assert verify_dataset(tmp_path) == []


def test_an_own_card_is_replaced_by_that_of_another_dataset(tmp_path, manifest):
    write_card(tmp_path, manifest)
    before = (tmp_path / CARD_NAME).read_text()
    other = resplit(manifest, "train", "val")
    assert write_card(tmp_path, other)
    assert (tmp_path / CARD_NAME).read_text() == card(other) != before


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("tags:", "license: cc0-1.0\ntags:"),
        lambda text: text + "More.\n",
        lambda text: text.replace("<!--", "<!- "),
        lambda text: "# Mine\n",
        lambda text: "",
    ],
)
def test_an_edited_card_or_another_readme_stays(tmp_path, manifest, edit):
    write_card(tmp_path, manifest)
    path = tmp_path / CARD_NAME
    mine = edit(path.read_text())
    path.write_text(mine)
    assert not write_card(tmp_path, resplit(manifest, "train", "val"))
    assert path.read_text() == mine


def test_bytes_links_and_folders_of_that_name_stay(tmp_path, manifest):
    path = tmp_path / CARD_NAME
    path.write_bytes(b"\xff\xfe")
    assert not write_card(tmp_path, manifest)
    path.unlink()
    path.mkdir()
    assert not write_card(tmp_path, manifest)
    path.rmdir()
    path.symlink_to("elsewhere")
    assert not write_card(tmp_path, manifest)
    assert path.is_symlink()


def test_datasets_reads_the_shards_of_the_card_and_nothing_else(tmp_path, manifest, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_card(tmp_path, manifest)
    (tmp_path / "other.arrow").write_bytes(b"no Arrow")
    loaded = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"mixed": 10}
    rows = loaded["mixed"]
    assert rows.column_names == [
        "key", "split", "image_units", "speech_units", "durations", "captions",
    ]  # fmt: skip
    assert rows[0]["key"] == "dir.0/image 0.é"


def test_datasets_reads_tars(tmp_path, make_samples, write_dataset):
    datasets = pytest.importorskip("datasets")
    manifest = write_dataset(tmp_path, make_samples(6), "packed", shard_rows=3)
    write_card(tmp_path, manifest)
    loaded = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert set(loaded["mixed"].column_names) == {"__key__", "__url__", "arrow"}
