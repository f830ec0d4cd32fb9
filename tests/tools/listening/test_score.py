import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from im2sp.tools.evaluation.intervals import mean_opinion
from im2sp.tools.listening.score import read_all, read_answers, read_key, report, score
from im2sp.tools.listening_test import main
from support.listening import save_answers, save_reference, save_spoken

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def test_dir(tmp_path_factory):
    """A test of two systems and a reference on three images."""
    folder = tmp_path_factory.mktemp("made")
    args = [f"{name}={save_spoken(folder / name, 300 + 99 * i)}" for i, name in enumerate("AB")]
    reference = f"people={save_reference(folder / 'wavs', ('a', 'b', 'd'))}"
    flags = ["--reference", reference, "--num-images", "3", "--out", str(folder / "test")]
    assert main(["build", *args, *flags]) == 0
    return folder / "test"


def opinion_of(system, image):
    """What everyone thinks of it, before strictness."""
    return {"people": 5, "A": 4, "B": 3}[system] - (image == "b")


def ratings(strictness):
    def rate(system, image):
        return opinion_of(system, image) - strictness, max(opinion_of(system, image) - 2, 1)

    return rate


@pytest.fixture
def answered(test_dir, tmp_path):
    """Files of three listeners, of whom the last answers for B only."""
    key = test_dir / "key.json"
    paths = [
        save_answers(tmp_path / f"{name}.json", key, name, ratings(strictness))
        for name, strictness in (("anna", 0), ("bert", 1))
    ]

    def only_b(system, image):
        return (2, None) if system == "B" else None

    return [*paths, save_answers(tmp_path / "cleo.json", key, "cleo", only_b)]


def test_means_are_over_all_ratings_of_a_system(test_dir, answered):
    key = read_key(test_dir / "key.json")
    everyone = read_all(answered, key)
    reference, a, b = score(key, everyone)
    assert (reference.name, reference.is_reference, a.is_reference) == ("people", True, False)
    assert (a.num_listeners, a.num_images, b.num_listeners) == (2, 3, 3)
    natural = a.opinions["naturalness"]
    values = np.array([4, 3, 4, 3, 2, 3.0])
    assert natural.mean == pytest.approx(values.mean())
    listeners, images = np.divmod(np.arange(6), 3)
    assert natural.half_width == mean_opinion(values, listeners, images).half_width > 0
    assert b.opinions["naturalness"].num_ratings == 9
    assert b.opinions["descriptiveness"].num_ratings == 6
    assert [one.num_complete for one in everyone] == [9, 9, 0]


def test_the_table_and_the_figures(test_dir, answered, tmp_path, capsys):
    out = tmp_path / "new" / "scores.json"
    args = ["score", str(test_dir / "key.json"), *map(str, answered), "--out", str(out)]
    assert main(args) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0] == "3 listeners, 9 samples"
    assert lines[2].split() == ["mean", "opinion,", "1", "to", "5", "naturalness",
                                "descriptiveness", "ratings", "listeners", "images"]  # fmt: skip
    assert lines[3].startswith("people (reference)")
    assert lines[4].split()[:3] == ["A", "3.17", "±"]
    assert "9 / 6" in lines[5]
    assert lines[-2:] == ["not complete: 1 of 3 listeners", "cleo: 0 of 9 samples rated in full"]
    assert max(map(len, lines)) <= 100
    figures = json.loads(out.read_text())
    assert [one["name"] for one in figures["systems"]] == ["people", "A", "B"]
    assert figures["systems"][1]["opinions"]["naturalness"]["mean"] == pytest.approx(19 / 6)
    assert [one["listener"] for one in figures["listeners"]] == ["anna", "bert", "cleo"]
    assert main([*args, "--json"]) == 0  # figures of an earlier run are replaced
    assert json.loads(capsys.readouterr().out) == figures


def test_what_was_not_heard_is_left_out_and_counted(test_dir, tmp_path, capsys):
    key = test_dir / "key.json"
    path = save_answers(tmp_path / "a.json", key, "anna", ratings(0))
    content = json.loads(path.read_text())
    first = next(iter(content["answers"].values()))
    first["heard"] = False
    path.write_text(json.dumps(content))
    answers = read_answers(path, read_key(key))
    assert (answers.num_complete, answers.num_unheard) == (8, 1)
    assert main(["score", str(key), str(path)]) == 0
    shown = capsys.readouterr().out
    assert "anna: 8 of 9 samples rated in full, 1 not played to the end and skipped" in shown
    assert "± ?: an interval needs at least two listeners and two images" in shown


def test_a_system_that_nobody_rated(test_dir, tmp_path):
    key = read_key(test_dir / "key.json")

    def only_a(system, image):
        return (4, 4) if system == "A" else None

    path = save_answers(tmp_path / "a.json", test_dir / "key.json", "anna", only_a)
    everyone = read_all([path], key)
    line = report(key, score(key, everyone), everyone).splitlines()[3]
    assert line.split() == ["B", "-", "-", "0", "0", "0"]


def damaged(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "x"}, "form 'x', expected 'im2sp-listening-answers 1': a file that the page's"),
        ({"test": "0" * 16}, "answers of the test '0000000000000000', the key is of '"),
        ({"listener": None}, "listener or answers are missing"),
        ({"answers": []}, "listener or answers are missing"),
        ({"answers": {"abc": {}}}, "answers for the sample 'abc', which the test does not have"),
    ],
)
def test_answers_that_are_refused(test_dir, answered, changes, message):
    key = read_key(test_dir / "key.json")
    damaged(answered[0], **changes)
    with pytest.raises(ValueError, match=message) as refused:
        read_answers(answered[0], key)
    assert str(refused.value).startswith(str(answered[0]))


@pytest.mark.parametrize("value", [0, 6, 4.5, 4.0, True, "4", [4]])
def test_scores_outside_the_scale_are_refused(test_dir, answered, value):
    key = read_key(test_dir / "key.json")
    sample = next(iter(key.samples))
    damaged(answered[0], answers={sample: {"heard": True, "descriptiveness": value}})
    with pytest.raises(ValueError, match=f"sample {sample}: descriptiveness is .*, expected 1, 2"):
        read_answers(answered[0], key)


def test_a_sample_without_fields_is_refused(test_dir, answered):
    key = read_key(test_dir / "key.json")
    damaged(answered[0], answers={next(iter(key.samples)): 4})
    with pytest.raises(ValueError, match=": 4, expected heard, naturalness and descriptiveness"):
        read_answers(answered[0], key)


def test_the_same_listener_twice_is_refused(test_dir, answered, capsys):
    damaged(answered[1], listener="anna")
    assert main(["score", str(test_dir / "key.json"), *map(str, answered)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "bert.json: the listener 'anna' again, who is also in" in told.err
    assert "anna.json; give the later of the two files" in told.err


def test_files_that_are_no_json(test_dir, answered, tmp_path, capsys):
    key = str(test_dir / "key.json")
    cut = tmp_path / "cut.json"
    cut.write_bytes(answered[0].read_bytes()[:90])
    for path in (cut, tmp_path / "none.json"):
        assert main(["score", key, str(path)]) == 1
        told = capsys.readouterr().err
        assert f"{path}: cannot be read as JSON (" in told
        assert "expected a file that the page's button 'Save answers' wrote" in told
    assert main(["score", str(answered[0]), key]) == 1
    assert "expected 'im2sp-listening-key 1': the key.json that build wrote" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": []},
        {"test": 5},
        {"reference": "others"},
        {"systems": "A"},
        {"systems": ["A"]},
        {"samples": {"x": {"system": "A", "image": 5}}},
        {"samples": {"x": "A"}},
    ],
)
def test_a_key_that_is_damaged(test_dir, tmp_path, changes):
    path = tmp_path / "key.json"
    path.write_bytes((test_dir / "key.json").read_bytes())
    damaged(path, **changes)
    with pytest.raises(ValueError, match=r"key\.json: damaged: test, systems or samples"):
        read_key(path)


def test_files_of_others_are_not_written_over(test_dir, answered, capsys):
    before = answered[0].read_bytes()
    args = ["score", str(test_dir / "key.json"), str(answered[1]), "--out", str(answered[0])]
    assert main(args) == 1
    assert "exists, but not written by an earlier run" in capsys.readouterr().err
    assert answered[0].read_bytes() == before


def test_it_runs_as_a_program_without_torch(test_dir, answered):
    args = ["listening_test.py", "score", str(test_dir / "key.json"), *map(str, answered)]
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        f"sys.argv = {args!r};"
        "runpy.run_path('tools/listening_test.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert "people (reference)" in done.stdout
