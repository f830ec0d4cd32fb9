import json
import shutil

import numpy as np
import pytest

from im2sp.tools.engines.java import (
    METEOR_JAR,
    SPICE_MODELS,
    TOKENIZER_JAR,
    JavaTools,
    Meteor,
    meteor_statistics,
    spice,
)
from im2sp.tools.evaluation.captions import (
    bleu,
    bleu_sums,
    check_captions,
    cider,
    rouge_l,
    score_captions,
)
from im2sp.tools.evaluation.intervals import interval
from support.evaluation import CANDIDATES, REFERENCES, stand_in_java

NO_JAVA = JavaTools(java=None, jars=None)
# pycocoevalcap 1.2 of these captions.
GOLDEN = {
    "Bleu_1": 0.7540311816463643,
    "Bleu_2": 0.6479675335981276,
    "Bleu_3": 0.5568669641872689,
    "Bleu_4": 0.47772274054579367,
    "ROUGE_L": 0.6196662697906479,
    "CIDEr": 2.506767436869878,
    "METEOR": 0.3558207285023955,
}


@pytest.fixture
def java():
    tools = JavaTools.find()
    if (why := tools.missing(METEOR_JAR)) is not None:
        pytest.skip(why)
    return tools


def test_scores_without_java_are_pycocoevalcaps():
    result = score_captions(CANDIDATES, REFERENCES, tools=NO_JAVA, resamples=50)
    assert result.scores == pytest.approx({k: v for k, v in GOLDEN.items() if k != "METEOR"})
    assert set(result.missing) == {"METEOR", "SPICE"}
    assert result.missing["METEOR"] == "Java is not installed: apt-get install default-jre-headless"
    for name, (low, high) in result.intervals.items():
        assert 0 <= low <= result.scores[name] <= high
    written = result.as_json()
    assert json.loads(json.dumps(written)) == written
    assert "METEOR" not in written


def test_scores_with_java_are_pycocoevalcaps(java):
    result = score_captions(CANDIDATES, REFERENCES, tools=java, resamples=20)
    named = {name: result.scores[name] for name in GOLDEN}
    assert named == pytest.approx(GOLDEN, abs=1e-12)


def test_agreement_with_pycocoevalcap_on_random_words():
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    rng = np.random.default_rng(0)

    def caption():
        return " ".join(rng.choice(list("abcdef"), rng.integers(0, 9)))

    found = {i: [caption()] for i in range(40)}
    wanted = {i: [caption() for _ in range(rng.integers(1, 4))] for i in found}
    words = [found[i][0].split() for i in found]
    groups = [[text.split() for text in wanted[i]] for i in found]
    sums = sum(bleu_sums(c, g) for c, g in zip(words, groups, strict=True))
    expected = Bleu().compute_score(wanted, found, verbose=0)[0]
    assert bleu(sums) == pytest.approx(expected, rel=1e-12)
    assert cider(words, groups) == pytest.approx(Cider().compute_score(wanted, found)[1].tolist())
    rouge = [rouge_l(found[i][0].split(" "), [t.split(" ") for t in wanted[i]]) for i in found]
    assert rouge == Rouge().compute_score(wanted, found)[1].tolist()


def test_what_is_missing_is_named(tmp_path):
    java = stand_in_java(tmp_path / "bin", "")
    no_jars = JavaTools(java=java, jars=None)
    assert "pycocoevalcap is not installed: pip install" in (no_jars.missing(METEOR_JAR) or "")
    empty = JavaTools(java=java, jars=tmp_path)
    assert "meteor-1.5.jar is missing" in (empty.missing(METEOR_JAR) or "")
    assert "spice-1.0.jar is missing" in (empty.spice_missing() or "")
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    (tmp_path / "spice" / "spice-1.0.jar").touch()
    why = empty.spice_missing() or ""
    assert "stanford-corenlp-3.6.0.jar and stanford-corenlp-3.6.0-models.jar not in" in why


def test_spice_runs_where_its_jars_are(tmp_path):
    program = (
        "import json, sys\n"
        "rows = json.load(open(sys.argv[4]))\n"
        "scores = [{'image_id': r['image_id'], 'scores': {'All': {'f': 0.1 * len(r['refs'])}}}"
        " for r in rows]\n"
        "json.dump(scores[::-1], open(sys.argv[sys.argv.index('-out') + 1], 'w'))\n"
    )
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for name in ("spice-1.0.jar", *(f"lib/{model}" for model in SPICE_MODELS)):
        (tmp_path / "spice" / name).touch()
    tools = JavaTools(java=stand_in_java(tmp_path / "bin", program), jars=tmp_path)
    assert tools.spice_missing() is None
    assert spice(tools, ["a", "b"], [["a"], ["b", "c"]]) == pytest.approx([0.1, 0.2])
    broken = JavaTools(
        java=stand_in_java(tmp_path / "bin2", "raise SystemExit('no memory')"), jars=tmp_path
    )
    with pytest.raises(ValueError, match="SPICE stopped: no memory; it needs Java 8 and 8 GB"):
        spice(broken, ["a"], [["a"]])


def test_meteor_in_a_folder_whose_name_has_a_space(java, tmp_path):
    jars = tmp_path / "with space, é%20"
    shutil.copytree(java.jars / "meteor", jars / "meteor")
    there = JavaTools(java=java.java, jars=jars)
    result = score_captions(CANDIDATES, REFERENCES, tools=there, resamples=2)
    assert result.scores == pytest.approx(GOLDEN)
    assert set(result.missing) == {"SPICE"}


def test_a_java_program_that_fails_is_named_and_the_other_scores_stay(tmp_path):
    for name in (TOKENIZER_JAR, METEOR_JAR, "spice/spice-1.0.jar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "spice/lib").mkdir()
    for name in SPICE_MODELS:
        (tmp_path / "spice/lib" / name).touch()
    stack = "Exception in thread main: no memory\\n  at Meteor.main(Unknown Source)"
    java = stand_in_java(tmp_path / "bin", f"raise SystemExit('{stack}')")
    result = score_captions(
        CANDIDATES, REFERENCES, tools=JavaTools(java=java, jars=tmp_path), resamples=2
    )
    assert result.scores == pytest.approx({k: v for k, v in GOLDEN.items() if k != "METEOR"})
    assert result.missing["METEOR"].startswith("METEOR stopped: Exception in thread main: no mem")
    assert result.missing["SPICE"].startswith("SPICE stopped: Exception in thread main: no memory")
    assert "one was used" in result.missing["tokenizer in Java"]
    (tmp_path / "bin/java").write_text("not a program")
    result = score_captions(
        CANDIDATES, REFERENCES, tools=JavaTools(java=java, jars=tmp_path), resamples=2
    )
    assert set(result.missing) == {"METEOR", "SPICE", "tokenizer in Java"}


def test_meteor_that_stops(tmp_path):
    (tmp_path / "meteor").mkdir()
    java = stand_in_java(tmp_path / "bin", "raise SystemExit('heap too small')")
    with (
        Meteor(JavaTools(java=java, jars=tmp_path)) as meteor,
        pytest.raises(ValueError, match="METEOR stopped: heap too small; it needs 2 GB"),
    ):
        meteor_statistics(meteor, ["a"], [["a"]])


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({}, {}, "no candidates, expected at least one id"),
        ({"a": "x"}, {}, "1 ids have no references, the first is 'a'"),
        ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "1 ids have no candidates, the first is 'b'"),
        ({"a": ["x"]}, {"a": ["x"]}, "candidate 'a': list, expected one text"),
        ({"a": "x"}, {"a": []}, "references 'a': expected a list of one or more texts"),
        ({"a": "x"}, {"a": "x"}, "references 'a': expected a list of one or more texts"),
        ({"a": "x"}, {"a": ["x", 3]}, "references 'a': an item of the list is not text"),
    ],
)
def test_captions_that_are_refused(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        check_captions(candidates, references)


def test_intervals():
    rng = np.random.default_rng(1)
    rows = rng.normal(5, 2, 400)
    low, high = interval(rows, resamples=500)
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert low < rows.mean() < high
    assert interval(rows, resamples=500).tolist() == [low, high]
    assert interval(rows, resamples=500, seed=1).tolist() != [low, high]
    table = np.stack([rows, np.ones(400)], 1)
    ratio = interval(table, lambda sums: sums[:, 0] / sums[:, 1], resamples=500)
    assert ratio == pytest.approx([low, high])
    with pytest.raises(ValueError, match="0 items and 5 resamples; an interval needs at least one"):
        interval([], resamples=5)
