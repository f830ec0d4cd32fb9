import pytest
import torch

from im2sp.shards import ShardDataset, ShardLoader
from im2sp.trainer.data import (
    TokenBatches,
    captions_of,
    check_fingerprints,
    fingerprints,
    make_loader,
    open_train,
    open_val,
    speech_vocabulary,
    tokenizer_records,
)
from im2sp.trainer.ranks import Ranks
from im2sp.trainer.text import fit_text_model
from making.training import make_config, make_samples, make_shards

ONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def test_speech_gets_its_specials(shards):
    dataset = ShardDataset(shards, "train")
    loader = ShardLoader(dataset, batch_size=8, shuffle=False)
    (batch,) = TokenBatches(loader, speech_vocabulary(dataset), None)
    expected = [units.tolist() for sample in dataset for units in sample.speech_units]
    assert batch.owner.tolist() == [i // 2 for i in range(16)]
    for row, units in zip(batch.tokens.tolist(), expected, strict=True):
        padding = [0] * (len(row) - len(units) - 2)
        assert row == [1, *[unit + 3 for unit in units], 2, *padding]
    assert batch.num_tokens == (batch.tokens[:, 1:] != 0).sum()
    assert [tensor.dtype for tensor in batch.to(torch.device("cpu"))] == [
        torch.uint8, torch.int64, torch.int64
    ]  # fmt: skip


def test_captions_are_cut_into_pieces(shards):
    dataset = ShardDataset(shards, "train")
    captions = list(captions_of(dataset))
    model = fit_text_model(captions, 40)
    loader = ShardLoader(dataset, batch_size=8, shuffle=False, target="text")
    (batch,) = TokenBatches(loader, model.vocabulary, model)
    found = [model.decode(model.vocabulary.decode(row)) for row in batch.tokens.tolist()]
    assert found == captions
    assert batch.num_tokens == (batch.tokens[:, 1:] != 0).sum()


def test_which_split_is_meant(shards, tmp_path):
    config = make_config(shards, tmp_path / "run")
    assert open_train(config).split == "train"
    assert open_val(config).split == "val"
    without = make_shards(tmp_path / "without", {"": 4})
    config = make_config(without, tmp_path / "run")
    assert (open_train(config).split, open_val(config)) == (None, None)
    assert open_val(make_config(shards, tmp_path / "run", val_shards=without)).split is None
    other = make_shards(tmp_path / "other", {"one": 4, "two": 4})
    with pytest.raises(ValueError, match=r"other: has splits \['one', 'two'\]; give one with --sp"):
        open_train(make_config(other, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"other: has splits .* give one with --val-split"):
        open_val(make_config(shards, tmp_path / "run", val_shards=other))
    config = make_config(other, tmp_path / "run", split="one", val_split="two")
    assert (open_train(config).split, open_val(config).split) == ("one", "two")


def test_over_long_items_are_counted(tmp_path):
    samples = make_samples({"train": 6})
    shards = make_shards(tmp_path / "shards", {"train": 6}, samples=samples)
    config = make_config(shards, tmp_path / "run", max_length=5)
    loader = make_loader(ShardDataset(shards), config, ONE, is_train=True)
    num_long = sum(len(units) > 5 for sample in samples for units in sample.speech_units)
    assert num_long
    assert loader.skipped["utterances longer than 5"] == num_long


def test_fingerprints(shards):
    dataset = ShardDataset(shards)
    assert fingerprints(dataset, "text") == {"image": "a" * 64}
    found = fingerprints(dataset, "speech")
    assert found == {"image": "a" * 64, "speech": "b" * 64}
    records = tokenizer_records(dataset, "speech")
    assert records["speech"] == {"name": "test", "fingerprint": "b" * 64, "num_units": 20}
    assert records["image"]["fingerprint"] == "a" * 64
    assert list(tokenizer_records(dataset, "text")) == ["image"]
    check_fingerprints(found, {"image": "a" * 64}, "here", "there")
    message = r"here: its speech units have .* \(none\), those of there bbbbbbbbbbbb; units of diff"
    with pytest.raises(ValueError, match=message):
        check_fingerprints({"speech": None}, found, "here", "there")
