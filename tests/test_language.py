"""Text for users holds no words that the style guide bans: README, docs, --help, messages."""

import ast
import re
import subprocess
import sys
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

GUIDES = ["README.md", "docs/CONTRIBUTING.md", "docs/reproduce-paper.md", "docs/results.md"]
SOURCES = [
    "pipeline/cli.py",
    "pipeline/job/config.py",
    "shards/cli.py",
    "shards/command_line.py",
    "shards/errors.py",
    "tools/evaluation/config.py",
    "tools/speak.py",
    "tools/speaking/config.py",
    "trainer/cli.py",
]
"""Files whose string literals and comments are checked; extend this list with every swept file."""

ALLOWED = ("any folder of yours", "SOURCE")
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


@pytest.mark.parametrize("source", SOURCES)
def test_messages_and_docstrings(source):
    tree = ast.parse((ROOT / source).read_text("utf-8"))
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [problem for text in texts for problem in found_in(text)] == []


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
