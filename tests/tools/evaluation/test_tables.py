"""The paper's tables with our rows, and their chart."""

import json
import xml.etree.ElementTree as ET

import pytest

from im2sp.tools.evaluation.chart import draw_chart
from im2sp.tools.evaluation.paper import PAPER_ROWS
from im2sp.tools.evaluation.tables import (
    as_json,
    as_markdown,
    as_text,
    make_tables,
    row_of,
    rows_of_opinions,
)


def result(**more):
    """Content of a scores.json of a run of speech."""
    names = ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
    captions = {name: 0.1 * (1 + place) for place, name in enumerate(names)}
    ends = {name: [value - 0.05, value + 0.05] for name, value in captions.items()}
    return {
        "name": "run (speech)",
        "shards": "shards/coco",
        "data": None,
        "split": "val",
        "asr": "pocketsphinx",
        "captions": {"num_items": 1234, **captions, "intervals": ends, "missing": {}},
        "opinions": {"num_items": 3, "UTMOS": 3.5, "intervals": {"UTMOS": [3, 4]}},
        "likelihood": {"log_likelihood": -2.5, "intervals": {"log_likelihood": [-3, -2]}},
    } | more


def paper_scores(number, data, task, system):
    found = [
        row
        for row in PAPER_ROWS[number]
        if (row.data, row.task, row.system) == (data, task, system)
    ]
    (row,) = found
    return list(row.scores.values())


def test_the_papers_figures():
    pixels = "pixels, GIT encoder and decoder"
    for number in (2, 3):
        assert paper_scores(number, "Flickr8k", "image to speech", pixels) == [
            *(20.6, 22.0, 48.4, 53.6, 15.8)
        ]
    assert paper_scores(2, "COCO", "image to speech", "pixels, CLIP encoder, new decoder") == [
        *(20.9, 21.3, 46.3, 64.7, 15.1)
    ]
    assert paper_scores(3, "COCO", "cascade", "image units") == [28.2, 24.3, 51.6, 87.4, 17.5]
    assert paper_scores(3, "Flickr8k", "image to text", "SAT") == [21.3, 20.3]
    assert paper_scores(3, "Flickr8k", "image to speech", "Effendi et al.") == [
        *(14.8, 17.4, 32.9, 45.8)
    ]
    assert paper_scores(4, "COCO", "image to speech", "image units") == [4.228, 3.725, 4.33, 4.16]
    assert [len(PAPER_ROWS[number]) for number in (2, 3, 4)] == [6, 18, 3]


def test_our_row_is_in_the_block_of_its_dataset():
    ours = row_of(result())
    assert (ours.source, ours.data, ours.split) == ("ours", "COCO", "val")
    assert (ours.task, ours.recognizer, ours.num_images) == (
        *("image to speech", "pocketsphinx", 1234),
    )
    assert (ours.system, row_of(result(input="image units")).system) == (
        *("run (speech)", "image units, run (speech)"),
    )
    assert ours.scores["Bleu_4"] == pytest.approx(10)
    assert ours.intervals["Bleu_4"] == pytest.approx((5, 15))
    assert ours.scores["SpeechLMScore"] == 2.5
    assert ours.intervals["SpeechLMScore"] == (2, 3)
    for table in make_tables([ours]):
        sources = [(row.data, row.source) for row in table.rows]
        assert sources[-1] == ("COCO", "ours")
        assert sources.count(("COCO", "ours")) == 1
    assert row_of(result(data="flickr8k")).data == "Flickr8k"
    assert row_of(result(data="mine", split=None)).split == "all"


@pytest.mark.parametrize(
    ("more", "task", "numbers"),
    [
        ({}, "image to speech", [2, 3]),
        ({"asr": None}, "image to text", [3]),
        ({"cascade": "flite"}, "cascade", [3]),
        ({"topline": "captions", "cascade": "flite"}, "topline", [3]),
    ],
)
def test_tasks(more, task, numbers):
    without = {"opinions": {}, "likelihood": {}}
    content = {k: v for k, v in result(**without, **more).items() if v is not None}
    ours = row_of(content)
    assert ours.task == task
    assert [t.number for t in make_tables([ours]) if ours in t.rows] == numbers


def test_forms_of_the_tables():
    tables = make_tables([row_of(result()), row_of(result(data="mine", name="a|b"))])
    text = as_text(tables)
    assert "Table 2: " in text
    line = next(line for line in text.splitlines() if line.startswith("ours   COCO"))
    assert line.split()[-5:] == ["10.0", "20.0", "30.0", "40.0", "-"]
    assert "5.0 to 15.0" in text
    markdown = as_markdown(tables)
    assert (
        "| paper | Flickr8k | test | image to speech | Wang et al. | ? | 1,000 | 3.5 |" in markdown
    )
    assert "| **10.0 (5.0 to 15.0)** |" in markdown
    assert "**a\\|b**" in markdown
    for table in markdown.split("\n\n"):
        rows = [row.replace("\\|", "") for row in table.splitlines() if row.startswith("| ")]
        assert len({row.count("|") for row in rows}) <= 1
    content = json.loads(json.dumps(as_json(tables)))
    assert [table["number"] for table in content["tables"]] == [2, 3, 4]
    last = content["tables"][1]["rows"][-1]
    assert (last["source"], last["data"], last["recognizer"]) == ("ours", "mine", "pocketsphinx")
    assert last["intervals"]["CIDEr"] == pytest.approx([35, 45])


def test_opinions_of_a_listening_test():
    opinions = {
        "naturalness": {"mean": 4.0, "half_width": 0.25},
        "descriptiveness": {"mean": 3.0, "half_width": None},
    }
    system = {"name": "run", "num_images": 20, "opinions": opinions}
    silent = {"name": "none", "num_images": 0, "opinions": dict.fromkeys(opinions)}
    rows = rows_of_opinions({"systems": [system, silent]}, "coco")
    assert rows[0].scores == {"naturalness": 4.0, "descriptiveness": 3.0}
    assert rows[0].intervals == {"naturalness": (3.75, 4.25)}
    assert (rows[0].data, rows[1].scores) == ("COCO", {})
    assert [rows[0] in table.rows for table in make_tables(rows)] == [False, False, True]
    assert rows[1] not in make_tables(rows)[2].rows


def test_chart(tmp_path):
    tables = make_tables([row_of(result(data="mine"))])
    for name in ("a.svg", "b.svg"):
        draw_chart(tables, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    texts = [e.text for e in ET.parse(tmp_path / "a.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert "Tables 2 and 3: mine" in texts
    assert "Table 4: COCO" in texts
    assert texts.count("ours, image to speech: run (speech), val (1,234)") == 2
    assert texts.count("paper, image to speech: Effendi et al.") == 1
