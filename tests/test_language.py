"""Text for users holds no words that the style guide bans: README, docs, --help, messages."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

BANNED = {
    r"tells?|telling|told": "log, report, state, show",
    r"by heart": "memorise",
    r"ears?": "recognizer",
    r"hears?|heard|mishear\w*": "transcribe, recognize",
    r"rooms?|houses?": "package, folder, space",
    r"go(es)? on": "resume, continue",
    r"so many": "at most N",
    r"if it likes|as it likes": "optional",
    r"begins? anew|starts? anew|made anew": "re-initialise, start from scratch",
    r"lies? (in|at|below|beside)": "is in",
    r"mend(s|ed)?": "fix",
    r"of (theirs|its own|one's own|yours)": "its",
    r"pictures?": "image",
    r"centres": "centroids",
    r"if need be|as torch names it": "(leave out)",
    r"learns? to look": "use the image",
}
"""Patterns of whole words, and what to write instead."""

GUIDES = [
    "CHANGELOG.md",
    "README.md",
    "docs/CONTRIBUTING.md",
    "docs/reproduce-paper.md",
    "docs/results.md",
    "trainer/compact_captioner.md",
]
ALLOWED = ("any folder of yours", "SOURCE", "listeners hear", "expected heard,")
NAMES = re.compile(r"```.*?```|`[^`\n]+`|\]\([^)]*\)|^ {4}[^\n]*$", re.M | re.S)
"""Code, paths and links of Markdown, which keep the names of flags and files."""


def found_in(text):
    """Banned words of a text, with what to write instead."""
    for allowed in ALLOWED:
        text = text.replace(allowed, "")
    return [
        f"{match[0]!r} ({better}) in {text[max(0, match.start() - 30) : match.end() + 20]!r}"
        for pattern, better in BANNED.items()
        for match in re.finditer(rf"\b({pattern})\b", text, re.I)
    ]


@pytest.mark.parametrize("guide", GUIDES)
def test_guides(guide):
    assert found_in(NAMES.sub("", (ROOT / guide).read_text("utf-8"))) == []


@pytest.mark.parametrize("command", sorted(SCRIPTS))
def test_help(command):
    module, _ = SCRIPTS[command].split(":")
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", shown.stdout).split())
    assert found_in(text) == []
    assert "None" not in text
    assert re.findall(r"(?<=\s)Of [^.]*\.(?= \(default)", text) == []


def test_code_of_a_guide_is_not_checked():
    text = "a `told` b\n    told\n```\ntold\n```\n[x](told.md) heard"
    assert [problem[:7] for problem in found_in(NAMES.sub("", text))] == ["'heard'"]


def test_the_word_list_finds_what_it_should():
    text = "What a job is told goes on by heart; it lies in a room for the ear."
    assert len(found_in(text)) == 6
    assert found_in("Resume a run; earlier shards, classrooms, a tellurion.") == []


def test_presets_have_the_parameters_that_help_names():
    import torch

    from im2sp.trainer.model import Im2SpModel
    from im2sp.trainer.model_config import PRESETS, preset_config
    from im2sp.trainer.vocabulary import Vocabulary

    text = (ROOT / "trainer/config.py").read_text()
    for preset in PRESETS:
        with torch.device("meta"):
            config = preset_config(preset, Vocabulary(kind="speech", num_ids=200))
            model = Im2SpModel(config, torch.zeros(8192, 32))
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        shown = f"{millions:.1f}" if millions < 10 else f"{millions:.0f}"
        assert f"- {preset}: {shown} M" in text
        assert f"`{preset}` {shown} M" in (ROOT / "README.md").read_text()


FILES = [
    path
    for package in ("pipeline", "shards", "trainer", "tools")
    for path in sorted((ROOT / package).rglob("*.py"))
]
NAME = re.compile(r"\w+")
SPAN = re.compile(r"`[^`\n]+`")
NOT_A_NOUN_PHRASE = re.compile(r"(What|Whether|Who|How)\b")


def problems_of(source):
    """Problems of a file's docstrings (of fields as well), other string literals and comments."""
    literals = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if not NAME.fullmatch(node.value)
    ]
    comments = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    docstrings = [
        (node.lineno, node.value.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node.value.value, str)
    ]
    words = [
        f"line {line}: {problem}"
        for line, text in literals + comments
        for problem in found_in(SPAN.sub("", text))
    ]
    openings = [
        f"line {line}: docstring starts with {text.split()[0]!r}; use a noun phrase or imperative"
        for line, text in docstrings
        if NOT_A_NOUN_PHRASE.match(text.lstrip())
    ]
    return words + openings


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_of_a_package(path):
    assert problems_of(path.read_text("utf-8")) == []


def test_the_check_of_files_finds_docstrings_literals_and_comments():
    source = 'class A:\n    """What it is."""\n    x: int = 1  # as told\n    """Whether so."""\n'
    source += '    y = f"{x} goes on"\n    tell = z.tell()\n    """Howling, whole, of whoever."""\n'
    found = problems_of(source)
    assert [problem.split(":")[0] for problem in found] == ["line 5", "line 3", "line 2", "line 4"]
