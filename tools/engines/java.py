"""METEOR and SPICE: Java programs of the package pycocoevalcap."""

import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

TOKENIZER_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
METEOR_JAR = "meteor/meteor-1.5.jar"
METEOR_PARAPHRASES = "data/paraphrase-en.gz"
SPICE_JAR = "spice/spice-1.0.jar"
# Parser models of SPICE; not part of pycocoevalcap.
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# Indices into METEOR's counts: chunks; lengths and matched words of candidate and reference.
_CHUNKS = 20
_WHOLE_MATCH = [0, 1, 21, 22]
_INSTALL_JAVA = "Java is not installed: apt-get install default-jre-headless"
_INSTALL_JARS = "pycocoevalcap is not installed: pip install 'im2sp[evaluate]'"


@dataclass(frozen=True, kw_only=True)
class JavaTools:
    """Java and the folder of the jars, either of which may be missing."""

    java: str | None
    jars: Path | None

    @classmethod
    def find(cls) -> Self:
        """Find `java` on the path and the package pycocoevalcap, without importing it."""
        spec = importlib.util.find_spec("pycocoevalcap")
        places = (spec.submodule_search_locations or []) if spec else []
        jars = next((Path(place) for place in places), None)
        return cls(java=shutil.which("java"), jars=jars)

    def missing(self, jar: str) -> str | None:
        """Return what to install before a jar can run; None if it can."""
        if self.java is None:
            return _INSTALL_JAVA
        if self.jars is None:
            return _INSTALL_JARS
        if not (self.jars / jar).is_file():
            return f"{self.jars / jar} is missing: pip install --force-reinstall pycocoevalcap"
        return None

    def spice_missing(self) -> str | None:
        """Like `missing`, for SPICE and its parser models."""
        found = self.missing(SPICE_JAR)
        if found is not None or self.jars is None:
            return found
        folder = self.jars / "spice" / "lib"
        absent = [name for name in SPICE_MODELS if not (folder / name).is_file()]
        if not absent:
            return None
        return (
            f"{' and '.join(absent)} not in {folder}: copy them there from Stanford CoreNLP 3.6.0"
            " (stanford-corenlp-full-2015-12-09.zip)"
        )


class Meteor:
    """METEOR 1.5 (English, normalised) as a running program with a line protocol."""

    def __init__(self, tools: JavaTools) -> None:
        """Start the program; `tools.missing` must be None."""
        assert tools.java is not None
        assert tools.jars is not None
        folder = (tools.jars / METEOR_JAR).parent
        command = [tools.java, "-jar", "-Xmx2G", "-Dfile.encoding=UTF-8", Path(METEOR_JAR).name]
        # Without -a, METEOR escapes a space in the path of its paraphrases twice.
        command += ["-", "-", "-stdio", "-l", "en", "-norm", "-a", METEOR_PARAPHRASES]
        with ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._stack.close()

    def statistics(self, candidate: str, references: Sequence[str]) -> NDArray[np.float64]:
        """(k,) counts of one tokenized candidate; additive over a corpus.

        Raises:
            ValueError: The program fails.
        """
        plain = candidate.replace("|||", "").replace("  ", " ")
        (line,) = self._ask(" ||| ".join(["SCORE", *references, plain]), 1)
        counts = np.array([float(number) for number in line.split()])
        # When METEOR aggregates captions, a caption that matches completely counts no chunk.
        if counts[_CHUNKS] == 1 and (counts[_WHOLE_MATCH] == counts[0]).all():
            counts[_CHUNKS] = 0
        return counts

    def score(self, statistics: NDArray[np.float64]) -> float:
        """METEOR, 0 to 1, of (k,) counts, which may be sums.

        Raises:
            ValueError: The program fails.
        """
        numbers = " ".join(repr(float(number)) for number in statistics)
        return float(self._ask(f"EVAL ||| {numbers}", 2)[-1])

    def _ask(self, question: str, num_answers: int) -> list[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(" ".join(question.split("\n")).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer raises below
        answers = [self._process.stdout.readline().decode() for _ in range(num_answers)]
        if not all(answers):
            self._errors.seek(0)
            raise ValueError(
                f"METEOR stopped: {_reason(self._errors.read())}; it needs 2 GB of memory"
            )
        return [answer.strip() for answer in answers]


def _reason(errors: bytes) -> str:
    """The line of a Java program's output that states the error: the one before the stack."""
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    stated = [line for line in lines if "rror" in line or "xception" in line]
    return (stated or lines[-1:] or ["no message"])[0].strip()


def meteor_statistics(
    meteor: Meteor, candidates: Iterable[str], references: Iterable[Sequence[str]]
) -> NDArray[np.float64]:
    """(n, k) counts of tokenized captions."""
    pairs = zip(candidates, references, strict=True)
    return np.stack([meteor.statistics(candidate, group) for candidate, group in pairs])


def spice(
    tools: JavaTools, candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> list[float]:
    """SPICE of each caption, 0 to 1; the corpus score is their mean.

    Args:
        tools: Java and jars; `spice_missing` must be None.
        candidates: Tokenized captions.
        references: Tokenized references of each candidate.

    Raises:
        ValueError: The program fails; it needs Java 8.
    """
    assert tools.java is not None
    assert tools.jars is not None
    rows = [
        {"image_id": number, "test": candidate, "refs": list(group)}
        for number, (candidate, group) in enumerate(zip(candidates, references, strict=True))
    ]
    folder = (tools.jars / SPICE_JAR).parent
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "in.json", Path(scratch) / "out.json"
        asked.write_text(json.dumps(rows), "utf-8")
        command = [tools.java, "-jar", "-Xmx8G", Path(SPICE_JAR).name, str(asked)]
        command += ["-out", str(answer), "-subset", "-silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        if done.returncode or not answer.is_file():
            raise ValueError(
                f"SPICE stopped: {_reason(done.stderr)}; it needs Java 8 and 8 GB of memory"
            )
        found = json.loads(answer.read_text("utf-8"))
    scores = {row["image_id"]: row["scores"]["All"]["f"] for row in found}
    return [float(scores[number]) for number in range(len(rows))]
