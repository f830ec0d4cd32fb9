"""Page of a listening test: one HTML file that opens from disk, with its media beside it.

Samples have opaque ids only. The parts are `page.html`, `.css` and `.js`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from string import Template

from im2sp.tools.listening.score import ANSWERS_FORM


@dataclass(frozen=True, kw_only=True)
class PageSample:
    """A sample of the page; paths are relative to the page."""

    id: str
    wav: str
    photo: str
    width_px: int
    height_px: int


def page(test: str, samples: Sequence[PageSample]) -> str:
    """Return the page as HTML.

    Args:
        test: Id of the test.
        samples: Samples in an order that identifies no system; each listener gets another order.
    """
    content = {
        "id": test,
        "answers_form": ANSWERS_FORM,
        "samples": [asdict(sample) for sample in samples],
    }
    return Template(_read("page.html")).substitute(
        style=_read("page.css"),
        script=_read("page.js"),
        num_samples=f"{len(samples):,}",
        data=json.dumps(content).replace("<", "\\u003c"),
    )


def _read(name: str) -> str:
    return files(__name__.rpartition(".")[0]).joinpath(name).read_text("utf-8")
