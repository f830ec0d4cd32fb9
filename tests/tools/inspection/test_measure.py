"""What im2sp-info measures agrees with a loop over the samples, in every layout and codec."""

import math
from collections import Counter

import numpy as np
import pytest

from im2sp.shards import Layout, Sample, ShardDataset, fit_durations_codec, fit_speech_codec
from im2sp.shards.schema import DEFAULT_COLUMNS
from im2sp.tools.inspection.measure import measure
from support.datasets import make_samples, write_dataset

LAYOUTS = [
    Layout(),
    Layout(kind="webdataset", samples_per_member=4),
    Layout(kind="webdataset", samples_per_member=1),
]


def samples_with_gaps():
    """Samples of which some lack the image, the speech, the durations or the captions."""
    full = make_samples(30, speech=True)
    texts = ["", " two  words\n", "schön\tgrün blau", "x" * 300]
    return [
        Sample(
            key=sample.key,
            split=sample.split,
            image_units=None if i % 5 == 3 else sample.image_units,
            speech_units=sample.speech_units[: i % 3],
            durations=None if i % 4 == 2 else sample.durations[: i % 3],
            captions=texts[: i % 5],
        )
        for i, sample in enumerate(full)
    ]


def fitted(samples):
    return DEFAULT_COLUMNS | {
        "speech_units": fit_speech_codec([u for s in samples for u in s.speech_units], 200),
        "durations": fit_durations_codec([d for s in samples for d in s.durations or []]),
    }


def wide(samples):
    return DEFAULT_COLUMNS | {"speech_units": {"codec": "packed", "bits": 11}}


def check_units(found, arrays):
    counts = Counter(int(unit) for array in arrays for unit in array.ravel())
    total = sum(counts.values())
    entropy = -sum(n / total * math.log2(n / total) for n in counts.values())
    assert (found["num_arrays"], found["num_units"]) == (len(arrays), total)
    assert found["codes_used"] == len(counts)
    assert found["entropy_bits"] == pytest.approx(entropy, abs=1e-4)
    assert found["most_frequent"][0] == list(min(counts.items(), key=lambda p: (-p[1], p[0])))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"{x.kind}-{x.samples_per_member}")
@pytest.mark.parametrize("columns", [lambda _: DEFAULT_COLUMNS, fitted, wide])
def test_measures_agree_with_a_loop_over_the_samples(tmp_path, layout, columns):
    samples = samples_with_gaps()
    write_dataset(tmp_path, samples, layout, columns=columns(samples))
    dataset = ShardDataset(tmp_path)
    measured = measure(dataset)
    found = measured.as_json()
    assert measured.num_samples == 30

    images = [s.image_units for s in samples if s.image_units is not None]
    check_units(found["image_units"], images)
    assert found["image_units"]["size_bytes"] == 1274 * len(images)
    assert found["image_units"]["shape"] == [28, 28]
    assert found["image_units"]["lengths"] is None

    speech = [units for s in samples for units in s.speech_units]
    check_units(found["speech_units"], speech)
    coded = sum(len(dataset.schema.units["speech_units"].encode(units)) for units in speech)
    assert found["speech_units"]["size_bytes"] == coded
    assert found["speech_units"]["stored_bits"] == pytest.approx(
        8 * coded / sum(u.size for u in speech), abs=1e-4
    )
    lengths = found["speech_units"]["lengths"]
    assert (lengths["min"], lengths["max"]) == (min(map(len, speech)), max(map(len, speech)))
    assert found["speech_units"]["per_sample"]["num"] == 30
    assert found["speech_units"]["per_sample"]["sum"] == len(speech)

    with_durations = [s for s in samples if s.durations is not None]
    check_units(found["durations"], [runs for s in with_durations for runs in s.durations])
    assert found["durations"]["per_sample"]["num"] == len(with_durations)

    captions = [caption for s in samples for caption in s.captions]
    texts = found["captions"]
    assert texts["num_values"] == len(captions)
    assert texts["size_bytes"] == sum(len(c.encode()) for c in captions)
    assert texts["words"]["sum"] == sum(len(c.split()) for c in captions)
    assert texts["characters"]["sum"] == sum(map(len, captions))
    assert texts["characters"]["max"] == 300
    assert measured.sizes["keys"] == sum(len(s.key.encode()) + len(s.split) for s in samples)


def test_a_part_of_the_batches_is_spread_over_the_dataset(tmp_path):
    samples = make_samples(200)
    write_dataset(tmp_path, samples, Layout(kind="webdataset", samples_per_member=2))
    seen = []
    measured = measure(ShardDataset(tmp_path), 20, seen.append)
    assert measured.num_samples == sum(seen)
    assert 20 <= measured.num_samples <= 24
    assert measured.as_json()["image_units"]["num_arrays"] == measured.num_samples
    assert measure(ShardDataset(tmp_path), 1).num_samples == 2
    assert measure(ShardDataset(tmp_path), 200).num_samples == 200


def test_the_size_of_the_vocabulary_is_that_of_the_tokenizer(tmp_path):
    samples = make_samples(4, speech=True)
    write_dataset(tmp_path, samples, speech_tokenizer={"name": "s", "num_units": 200})
    found = measure(ShardDataset(tmp_path)).as_json()
    assert found["speech_units"]["num_codes"] == 200
    assert found["image_units"]["num_codes"] == 8192


def test_an_empty_dataset(tmp_path):
    write_dataset(
        tmp_path, [Sample(key="a")] * 0 + [Sample(key="a"), Sample(key="b"), Sample(key="c")]
    )
    found = measure(ShardDataset(tmp_path)).as_json()
    for name in ("image_units", "speech_units"):
        assert (found[name]["num_units"], found[name]["stored_bits"]) == (0, None)
    assert found["captions"]["words"] is None
    assert np.sum(found["image_units"]["histogram"]["counts"]) == 0
