import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from im2sp.tools.bench import encode
from im2sp.tools.bench.speech import (
    COLUMNS,
    SpeechSettings,
    make_clips,
    make_model,
    plain_features,
    plain_units,
    run,
)
from im2sp.tools.bench.timing import table

TINY = SpeechSettings(size="tiny", num_clips=3, clip_s=1.0, num_units=20, repeats=2)


def test_rows_and_table():
    rows = run(TINY)
    assert [row["case"] for row in rows] == ["plain-fp32", "ours-fp32", "ours-bf16"]
    assert json.loads(json.dumps(rows[0]))["speedup"] == 1.0
    assert rows[1]["equal_units"] == 1.0
    assert rows[2]["equal_units"] > 0.5
    assert 10 < rows[0]["distinct_units"] <= 20
    assert rows[0]["audio_s"] == 3.0
    for row in rows:
        assert row["fastest_s"] <= row["median_s"] <= row["slowest_s"]
        assert row["audio_hours_per_hour"] == pytest.approx(3 / row["median_s"], rel=0.05)
        assert "image_size_px" not in row
    text = table(rows, COLUMNS)
    assert "ours-bf16" in text
    assert "audio_hours_per_hour" in text


def test_the_plain_way_is_the_nearest_centre_of_all_layers_features():
    model, clips = make_model("tiny"), make_clips(TINY)
    assert len(model.encoder.layers) == 8
    features = plain_features(model, clips)
    assert [len(rows) for rows in features] == [(len(clip) - 400) // 320 + 1 for clip in clips]
    centroids = torch.cat(features)[::9]
    expected = torch.cdist(torch.cat(features).double(), centroids.double()).argmin(1)
    np.testing.assert_array_equal(plain_units(features, centroids), expected)


def test_clips_are_the_same_each_time_and_of_many_lengths():
    first, second = make_clips(TINY), make_clips(TINY)
    assert [len(clip) for clip in first] == [8000, 16_000, 24_000]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float32
        assert 0.01 < np.abs(a).max() < 1


def test_the_flag_of_bench_encode(capsys):
    flags = "--audio --size tiny --num-clips 2 --clip-s 0.5 --num-units 5 --repeats 1"
    cases = ["--cases", "ours-fp32"]
    assert encode.main([*flags.split(), *cases]) == 0
    row, head, _, last = capsys.readouterr().out.splitlines()
    assert json.loads(row)["case"] == "ours-fp32"
    assert "speedup" not in json.loads(row)
    assert head.replace("|", " ").split() == list(COLUMNS)
    assert last.startswith("| ours-fp32 ")


def test_weights_are_random():
    with pytest.raises(ValueError, match="--weights compact: --audio times random weights"):
        encode.speech_settings(encode.Settings(audio=True, weights="compact"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": ("theirs",)}, "unknown case 'theirs', expected some of plain-fp32"),
        ({"size": "small"}, "size 'small', expected tiny or base with --audio"),
        ({"num_clips": 0}, "0 clips of 1 s, expected at least 1 of 0.1 s"),
        ({"num_units": 5000}, "5000 centroids for 147 rows"),
    ],
)
def test_what_cannot_be_timed_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run(dataclasses.replace(TINY, **changes))


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="transformers, which is not installed; `pip install"):
        make_model("tiny")
