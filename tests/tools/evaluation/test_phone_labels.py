from pathlib import Path

import numpy as np
import pytest

from im2sp.tools.evaluation.unit_quality import NO_PHONE, PhoneLabels

TEXT = "# made by hand\n\n0.0 0.1 pau\n  0.1\t0.25 ax \n0.3 0.4 pau\n"


def write(path: Path, text: str = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(labels: PhoneLabels, clip: str, times_s: list[float]) -> list[str]:
    numbers = labels.of_frames(clip, np.array(times_s))
    return [labels.phones[number] if number != NO_PHONE else "" for number in numbers]


def test_each_frame_has_the_phone_of_its_time(tmp_path):
    write(tmp_path / "a" / "b.lab")
    labels = PhoneLabels(tmp_path)
    times_s = [0.0, 0.05, 0.1, 0.2, 0.25, 0.29, 0.3, 0.399, 0.4, 9]
    assert names(labels, "a/b.wav", times_s) == [
        "pau",
        "pau",
        "ax",
        "ax",
        "",
        "",
        "pau",
        "pau",
        "",
        "",
    ]
    assert labels.phones == ["pau", "ax"]


def test_names_of_files(tmp_path):
    write(tmp_path / "b.phones")
    write(tmp_path / "deep" / "c.lab", "0 1 x\n")
    write(tmp_path / "c.lab", "0 1 y\n")
    labels = PhoneLabels(tmp_path)
    assert [labels.has(name) for name in ("b.wav", "any/b.flac", "d.wav")] == [True, True, False]
    assert names(labels, "deep/c.wav", [0.5]) == ["x"]
    assert names(labels, "c.wav", [0.5]) == ["y"]
    assert names(labels, "d.wav", [0.5]) == [""]


def test_one_file_for_many_clips(tmp_path):
    path = write(tmp_path / "all", "a/b.wav 0 1 x\na/b.wav 1 2 y\nmy clip 0 1 z\nc 0 1 v\n")
    labels = PhoneLabels(path)
    assert names(labels, "a/b.wav", [0.5, 1.5]) == ["x", "y"]
    assert names(labels, "my clip.flac", [0.5]) == ["z"]
    assert names(labels, "deep/c.flac", [0.5]) == ["v"]
    assert not labels.has("b.wav")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.0 0.1\n", r"x.lab:1: '0.0 0.1', expected `<start_s> <end_s> <phone>`"),
        ("0 0.1 a b\n", "x.lab:1"),
        ("0 0.1 a\n\n0.1 b c\n", "x.lab:3: '0.1 b c'"),
        ("0.1 0.1 a\n", "expected `<start_s>"),
        ("-1 0.1 a\n", "expected `<start_s>"),
        ("0 inf a\n", "expected `<start_s>"),
        ("nan 1 a\n", "expected `<start_s>"),
        (
            "0 0.2 a\n0.1 0.3 b\n",
            "x.lab:2: .* before the previous phone ends, at 0.2; expected phones in order",
        ),
    ],
)
def test_damaged_labels_say_where(tmp_path, text, message):
    write(tmp_path / "x.lab", text)
    with pytest.raises(ValueError, match=message):
        PhoneLabels(tmp_path).of_frames("x.wav", np.zeros(1))


def test_times_that_were_rounded_may_overlap_a_little(tmp_path):
    write(tmp_path / "x.lab", "0 0.101 a\n0.1 0.2 b\n")
    assert names(PhoneLabels(tmp_path), "x.wav", [0.05, 0.1005, 0.15]) == ["a", "b", "b"]


def test_files_that_hold_no_labels(tmp_path):
    with pytest.raises(ValueError, match="none: no such file or folder of phone labels"):
        PhoneLabels(tmp_path / "none")
    with pytest.raises(ValueError, match=r"all:2: '0 1 x', expected `<clip> <start_s> <end_s>"):
        PhoneLabels(write(tmp_path / "all", "a 0 1 x\n0 1 x\n"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="bytes: not UTF-8 text"):
        PhoneLabels(tmp_path / "bytes")
