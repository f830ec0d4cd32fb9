"""The page of a listening test: one file that opens from disk, with its media beside it.

It knows samples by opaque ids only. `listening_script` is what makes it work.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from im2sp.tools.listening_score import ANSWERS_FORM
from im2sp.tools.listening_script import SCRIPT

# The words of ITU-T P.800, Annex B, from the worst to the best.
WORDS = ("Bad", "Poor", "Fair", "Good", "Excellent")
_QUESTIONS = {
    "naturalness": (
        "Naturalness",
        "How natural does the speech sound? Judge the sound alone, not what is said.",
    ),
    "descriptiveness": (
        "Descriptiveness",
        "How well does the speech describe the photo? Judge what is said, not how it sounds.",
    ),
}

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #6b6b6b; --accent: #1a5fb4;
  --on-accent: #fff; --warn: #a33b00; }
@media (prefers-color-scheme: dark) {
  :root { --soft: #a0a0a0; --accent: #8ab4f8; --on-accent: #111; --warn: #ffb27a; } }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; line-height: 1.45;
  font-family: system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
h2 { font-size: 1.125rem; margin: 0 0 .75rem; }
h1:focus, h2:focus { outline: none; }
p { margin: 0 0 .75rem; }
.soft { color: var(--soft); font-size: .875rem; }
.warn { color: var(--warn); }
#progress { align-items: center; display: flex; flex-wrap: wrap; gap: .25rem .75rem;
  margin-bottom: 1rem; }
progress { accent-color: var(--accent); flex: 1 1 10rem; height: .75rem; }
#start, #overview { max-width: 40rem; }
dt { font-weight: 600; }
dd { margin: 0 0 .5rem; }
.field { display: block; font-weight: 600; }
input[type=text] { display: block; font: inherit; margin: .25rem 0; max-width: 100%;
  padding: .4rem .5rem; width: 20rem; }
button { background: none; border: 1px solid var(--line); border-radius: .375rem; color: inherit;
  cursor: pointer; font: inherit; padding: .5rem .8rem; }
button.main { background: var(--accent); border-color: var(--accent); color: var(--on-accent);
  font-weight: 600; }
button:disabled { cursor: default; opacity: .45; }
.columns { display: grid; gap: 1rem 1.5rem; grid-template-columns: 1fr; }
.photo { display: block; height: auto; margin: 0 auto; max-height: 45vh; max-width: 100%;
  border-radius: .375rem; object-fit: contain; width: auto; }
audio { display: block; margin-bottom: 1rem; width: 100%; }
fieldset { border: 1px solid var(--line); border-radius: .5rem; margin: 0 0 1rem; min-width: 0;
  padding: .5rem .75rem .75rem; }
legend { font-weight: 600; padding: 0 .375rem; }
fieldset p { font-size: .9375rem; margin-bottom: .5rem; }
.scale { display: grid; gap: .375rem; grid-template-columns: repeat(5, minmax(0, 1fr)); }
.scale label { align-items: center; border: 1px solid var(--line); border-radius: .375rem;
  cursor: pointer; display: flex; flex-direction: column; font-size: .875rem; gap: .125rem;
  padding: .4rem .25rem; }
.scale label:has(:checked) { border-color: var(--accent);
  box-shadow: inset 0 0 0 1px var(--accent); }
.scale label:focus-within { outline: 2px solid var(--accent); outline-offset: 1px; }
.scale input { accent-color: var(--accent); margin: 0; }
.scale b { font-size: 1.125rem; }
nav { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: .75rem; }
nav .main { margin-left: auto; }
#missing { list-style: none; margin: 0 0 1rem; padding: 0; }
#missing li { align-items: baseline; display: flex; gap: .6rem; margin-bottom: .375rem; }
#missing button { flex: none; padding: .2rem .6rem; }
@media (min-width: 52rem) {
  .columns { grid-template-columns: minmax(0, 1fr) minmax(0, 1.1fr); align-items: start; }
  .photo { max-height: 80vh; } }
@media (max-width: 26rem) {
  .scale { grid-template-columns: 1fr; }
  .scale label { flex-direction: row; gap: .6rem; padding: .45rem .75rem; }
  .scale b { font-size: 1rem; } }
"""


@dataclass(frozen=True, kw_only=True)
class PageSample:
    """A sample as listeners get it; files are named from the page on."""

    id: str
    wav: str
    photo: str
    width_px: int
    height_px: int


def page(test: str, samples: Sequence[PageSample]) -> str:
    """The page as HTML.

    Args:
        test: Id of the test.
        samples: In any order that tells nothing; listeners hear them in orders of their own.
    """
    content = {
        "id": test,
        "answers_form": ANSWERS_FORM,
        "samples": [asdict(sample) for sample in samples],
    }
    data = json.dumps(content).replace("<", "\\u003c")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Listening test</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + _HEAD
        + _start(len(samples))
        + _sample()
        + _OVERVIEW
        + f'<script type="application/json" id="test">{data}</script>\n'
        + f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


_HEAD = """<header>
<h1>Listening test</h1>
<noscript><p class="warn">This page needs JavaScript; please allow it and reload.</p></noscript>
<p id="unkept" class="warn" role="alert" hidden>This browser keeps no answers: save them before you
close or reload this page.</p>
<div id="progress" hidden><progress id="bar" aria-labelledby="done"></progress>
<span id="done" class="soft"></span></div>
</header>
<main>
"""

_OVERVIEW = """<section id="overview" hidden>
<h2 id="heading" tabindex="-1">Overview</h2>
<p id="verdict"></p>
<ul id="missing"></ul>
<nav aria-label="Overview">
<button type="button" id="back">Back to the samples</button>
<button type="button" id="save" class="main">Save answers</button>
</nav>
<p id="saved" role="status"></p>
</section>
</main>
"""


def _start(num_samples: int) -> str:
    questions = "".join(
        f"<dt>{title}</dt><dd>{question}</dd>\n" for title, question in _QUESTIONS.values()
    )
    return f"""<form id="start" hidden>
<p>You will hear {num_samples:,} short spoken descriptions, each of the photo beside it. Use
headphones in a quiet room if you can. Listen to each to its end, as often as you like, and give it
two scores from 1 (bad) to 5 (excellent):</p>
<dl>
{questions}</dl>
<p>Your answers stay in this browser. You can stop at any time and go on later. At the end a button
saves them as a file, to be sent to the person who gave you this test.</p>
<p id="welcome" class="soft" hidden>Welcome back: under the same name you go on where you were.</p>
<p><label class="field" for="listener">Your name in this test</label>
<input type="text" id="listener" required maxlength="40" pattern="\\s*[A-Za-z0-9_\\-]+\\s*"
autocomplete="off" autocapitalize="none" spellcheck="false" aria-describedby="listener-about">
<span id="listener-about" class="soft">Made up, and your own: letters a to z, digits, - and _. It
decides the order in which you hear the samples.</span></p>
<p><button type="submit" class="main">Start</button></p>
</form>
"""


def _sample() -> str:
    scales = "".join(_scale(name, *texts) for name, texts in _QUESTIONS.items())
    return f"""<form id="sample" hidden>
<h2 id="number" tabindex="-1"></h2>
<div class="columns">
<div><img id="photo" class="photo" alt="The photo that the speech should describe"></div>
<div>
<audio id="audio" controls preload="auto" aria-label="The spoken description"></audio>
<p id="broken" class="warn" role="alert" hidden>This sound cannot be played. Is the folder media
whole, beside this page? If it is, tell the person who gave you this test.</p>
{scales}<p id="left" class="soft" role="status"></p>
<nav aria-label="Samples">
<button type="button" id="previous">Previous</button>
<button type="button" id="to-overview">Overview</button>
<button type="submit" id="next" class="main">Next</button>
</nav>
</div>
</div>
</form>
"""


def _scale(name: str, title: str, question: str) -> str:
    choices = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"><b>{value}</b> {word}</label>\n'
        for value, word in enumerate(WORDS, 1)
    )
    return (
        f'<fieldset aria-describedby="{name}-about"><legend>{title}</legend>\n'
        f'<p id="{name}-about">{question}</p>\n<div class="scale">\n{choices}</div></fieldset>\n'
    )
