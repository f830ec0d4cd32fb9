from dataclasses import replace

import numpy as np
import pytest
import torch

from im2sp.shards import (
    DatasetWriter,
    Sample,
    ShardDataset,
    ShardLoader,
    UnitColumn,
    unpack_units_on_device,
)
from im2sp.trainer.data import TokenBatches, make_loader, open_other_views
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import preset_config
from im2sp.trainer.ranks import Ranks
from im2sp.trainer.sources import (
    captions_of,
    check_fingerprints,
    fingerprints,
    open_train,
    open_val,
    speech_vocabulary,
    tokenizer_records,
)
from im2sp.trainer.text import fit_text_model
from support.training import make_config, make_samples, make_shards

ONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def test_special_tokens_of_speech(shards):
    dataset = ShardDataset(shards, "train")
    loader = ShardLoader(dataset, batch_size=8, shuffle=False)
    (batch,) = TokenBatches(loader, speech_vocabulary(dataset), None)
    expected = [units.tolist() for sample in dataset for units in sample.speech_units]
    assert batch.owner.tolist() == [i // 2 for i in range(16)]
    for row, units in zip(batch.tokens.tolist(), expected, strict=True):
        padding = [0] * (len(row) - len(units) - 2)
        assert row == [1, *[unit + 3 for unit in units], 2, *padding]
    assert batch.num_tokens == (batch.tokens[:, 1:] != 0).sum()
    units, tokens, owner = batch.to(torch.device("cpu"))
    assert owner is None  # two texts an image
    assert [units.dtype, tokens.dtype] == [torch.int64, torch.int64]


def test_batches_of_a_fixed_shape_have_the_same_loss(shards):
    dataset = ShardDataset(shards, "train")
    loader = ShardLoader(dataset, batch_size=8, shuffle=False)
    vocabulary = speech_vocabulary(dataset)
    (batch,) = TokenBatches(loader, vocabulary, None)
    kept = torch.tensor([0, 2, 3, 4, *range(6, 16)])  # one text of the first and the third image
    batch = replace(batch, tokens=batch.tokens[kept], owner=batch.owner[kept])
    padded = batch.with_fixed_shape(vocabulary.pad, 1024)
    inputs = batch.tokens.shape[1] - 1
    assert padded.tokens.shape == (16, 1 + 32 * (1 + (inputs - 1) // 32))
    assert batch.with_fixed_shape(vocabulary.pad, inputs).tokens.shape == (16, 1 + inputs)
    assert batch.to(torch.device("cpu"))[2] is not None
    torch.manual_seed(0)
    sizes = preset_config("tiny", vocabulary)
    model = Im2SpModel(sizes, torch.randn(8192, 32)).eval()
    losses = [model.loss(*one.to(torch.device("cpu"))) for one in (batch, padded)]
    torch.testing.assert_close(*losses)


def test_captions_are_split_into_pieces(shards):
    dataset = ShardDataset(shards, "train")
    captions = list(captions_of([dataset]))
    model = fit_text_model(captions, 40)
    loader = ShardLoader(dataset, batch_size=8, shuffle=False, target="text")
    (batch,) = TokenBatches(loader, model.vocabulary, model)
    found = [model.decode(model.vocabulary.decode(row)) for row in batch.tokens.tolist()]
    assert found == captions
    assert batch.num_tokens == (batch.tokens[:, 1:] != 0).sum()


def test_default_splits(shards, tmp_path):
    config = make_config(shards, tmp_path / "run")
    (train,) = open_train(config)
    (val,) = open_val(config, train)
    assert (train.split, val.split) == ("train", "val")
    without = make_shards(tmp_path / "without", {"": 4})
    config = make_config(without, tmp_path / "run")
    assert ([one.split for one in open_train(config)], open_val(config, train)) == ([None], [])
    (val,) = open_val(make_config(shards, tmp_path / "run", val_shards=without), train)
    assert val.split is None
    other = make_shards(tmp_path / "other", {"one": 4, "two": 4})
    with pytest.raises(ValueError, match=r"other: has splits \['one', 'two'\]; give one with --sp"):
        open_train(make_config(other, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"other: has splits .* give one with --val-split"):
        open_val(make_config(shards, tmp_path / "run", val_shards=other), train)
    config = make_config(other, tmp_path / "run", split="one", val_split="two")
    (val,) = open_val(config, train)
    assert (open_train(config)[0].split, val.split) == ("one", "two")


def test_over_long_items_are_counted(tmp_path):
    samples = make_samples({"train": 6})
    shards = make_shards(tmp_path / "shards", {"train": 6}, samples=samples)
    config = make_config(shards, tmp_path / "run", max_length=5)
    loader = make_loader([ShardDataset(shards)], config, ONE, is_train=True)
    num_long = sum(len(units) > 5 for sample in samples for units in sample.speech_units)
    assert num_long
    assert loader.skipped["utterances longer than 5"] == num_long


def test_fingerprints(shards):
    dataset = ShardDataset(shards)
    columns = {"image": "image_units", "speech": "speech_units"}
    assert fingerprints(dataset, {"image": "image_units"}) == {"image": "a" * 64}
    found = fingerprints(dataset, columns)
    assert found == {"image": "a" * 64, "speech": "b" * 64}
    records = tokenizer_records(dataset, columns)
    assert records["speech"] == {"name": "test", "fingerprint": "b" * 64, "num_units": 20}
    assert records["image"]["fingerprint"] == "a" * 64
    check_fingerprints(found, {"image": "a" * 64}, "here", "there")
    message = r"here: its speech units have .* \(none\), those of there bbbbbbbbbbbb; units of diff"
    with pytest.raises(ValueError, match=message):
        check_fingerprints({"speech": None}, found, "here", "there")


def mirrored_of(shards, folder, keys=None, **changes):
    """The same samples with other image units, in another order."""
    samples = [
        Sample(key=sample.key, split=sample.split, image_units=8191 - sample.image_units)
        for sample in ShardDataset(shards)
        if keys is None or sample.key in keys
    ][::-1]
    splits = {split: sum(s.split == split for s in samples) for split in ("train", "val")}
    splits = {split: count for split, count in splits.items() if count}
    return make_shards(folder, splits, samples=samples, **changes)


def units_of_epoch(shards, out, others, epoch, **changes):
    """Key -> image units of one epoch of a run."""
    config = make_config(shards, out, other_view=tuple(others), **changes)
    datasets = open_train(config)
    loader = make_loader(datasets, config, ONE, is_train=True)
    batches = TokenBatches(
        loader, speech_vocabulary(datasets[0]), None, open_other_views(config, datasets)
    )
    found = {}
    for batch in batches:
        if batch.source.epoch > epoch:
            return found
        if batch.source.epoch == epoch:
            units = unpack_units_on_device(batch.images_packed)
            found |= dict(zip(batch.source.keys, units.numpy(), strict=True))
    return found


def test_one_other_view_is_drawn_half_of_the_time(tmp_path):
    shards = make_shards(tmp_path / "shards", {"train": 60, "val": 2})
    other = mirrored_of(shards, tmp_path / "other")
    own = {sample.key: sample.image_units for sample in ShardDataset(shards, "train")}
    taken = []
    for epoch in (0, 1):
        found = units_of_epoch(shards, tmp_path / "run", [other], epoch)
        assert found.keys() == own.keys()
        for key, units in found.items():
            is_other = (units == 8191 - own[key]).all()
            assert is_other or (units == own[key]).all()
            taken.append(is_other)
    assert 40 <= sum(taken) <= 80
    first, second = np.array(taken[:60]), np.array(taken[60:])
    assert 15 <= (first != second).sum() <= 45


def test_several_views_are_drawn_equally_often(tmp_path):
    shards = make_shards(tmp_path / "shards", {"train": 60, "val": 2})
    others = [
        mirrored_of(shards, tmp_path / "a"),
        make_shards(tmp_path / "b", {"train": 60}, seed=9),
    ]
    own = {sample.key: sample.image_units for sample in ShardDataset(shards, "train")}
    counts = [0, 0, 0]
    for epoch in (0, 1):
        for key, units in units_of_epoch(shards, tmp_path / "run", others, epoch).items():
            is_own, is_first = (units == own[key]).all(), (units == 8191 - own[key]).all()
            counts[0 if is_own else 1 if is_first else 2] += 1
    assert sum(counts) == 120
    assert all(28 <= count <= 52 for count in counts)


def test_the_drawn_view_does_not_depend_on_the_batches(tmp_path):
    shards = make_shards(tmp_path / "shards", {"train": 12, "val": 2})
    other = mirrored_of(shards, tmp_path / "other")
    one = units_of_epoch(shards, tmp_path / "run", [other], 1, batch_size=2)
    two = units_of_epoch(shards, tmp_path / "run", [other], 1, batch_size=4, bucket_window=0)
    assert one.keys() == two.keys()
    for key, units in one.items():
        np.testing.assert_array_equal(units, two[key])


def test_images_without_other_views_keep_their_own(tmp_path):
    shards = make_shards(tmp_path / "shards", {"train": 12, "val": 2})
    other = mirrored_of(shards, tmp_path / "other", keys=("train3",))
    for sample in ShardDataset(shards, "train"):
        found = units_of_epoch(shards, tmp_path / "run", [other], 0)[sample.key]
        if sample.key != "train3":
            np.testing.assert_array_equal(found, sample.image_units)


def test_views_may_be_coded_in_another_way(tmp_path):
    """Coded and packed units, in a column of another name; the second has every second image."""
    rng = np.random.default_rng(0)
    grids = {f"i{k}": rng.integers(0, 30, (4, 4)) for k in range(24)}
    for name, coding, step in (("own", "coded", 1), ("packed", "packed", 1), ("coded", "coded", 2)):
        columns = {"picture": UnitColumn((4, 4), 30, coding=coding)}
        with DatasetWriter(tmp_path / name, columns=columns) as writer:
            for key in [*grids][::step]:
                units = grids[key] if name == "own" else 29 - grids[key]
                writer.write(key=key, captions=["a dog"], picture=units)
    settings = {"image_column": "picture", "target": "text", "batch_size": 8}
    others = (tmp_path / "packed", tmp_path / "coded")
    config = make_config(tmp_path / "own", tmp_path / "run", other_view=others, **settings)
    datasets = open_train(config)
    loader = make_loader(datasets, config, ONE, is_train=True)
    views = open_other_views(config, datasets)
    batches = iter(loader)
    drawn = []
    for batch in (next(batches) for _ in range(3)):
        packed, numbers = views.mix(batch.images_packed, batch.keys, batch.epoch)
        found = unpack_units_on_device(packed, 5, (4, 4)).numpy()
        for key, units, number in zip(batch.keys, found, numbers, strict=True):
            np.testing.assert_array_equal(units, 29 - grids[key] if number else grids[key])
            assert number < 2 or int(key[1:]) % 2 == 0
        drawn += numbers
    assert set(drawn) == {0, 1, 2}


def test_another_view_of_other_images_or_units_is_refused(tmp_path):
    shards = make_shards(tmp_path / "shards")
    strange = make_shards(tmp_path / "strange", {"": 3})
    with pytest.raises(ValueError, match="none of its 3 images is among the 8 of .*shards"):
        units_of_epoch(shards, tmp_path / "run", [strange], 0)
    other = mirrored_of(shards, tmp_path / "other", image_fingerprint="c" * 64)
    with pytest.raises(ValueError, match="--other-view .*other: its image units .* cccccccccccc"):
        units_of_epoch(shards, tmp_path / "run", [other], 0)
