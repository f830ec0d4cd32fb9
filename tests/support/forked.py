"""Run commands one after the other, each in a fork that has torch imported already.

    python forked.py PYPROJECT REPORT < COMMANDS

COMMANDS is a JSON list of lists of words. One line of bash that starts with a console script of
PYPROJECT runs that script's function in a fork of this process, in which torch is imported already;
other commands are started as they are. The first failing command ends the run. `[status, output]`
of each command is written to REPORT as a line of JSON.
"""

import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

# The slowest imports of the commands.
PRELOADED = (
    "im2sp.pipeline.job.run",
    "im2sp.tools.evaluation.chain",
    "im2sp.tools.speaking.run",
    "im2sp.trainer.loop",
    "matplotlib.figure",
    "transformers.models.wav2vec2.modeling_wav2vec2",
    "vector_quantize_pytorch",
)


def run_forked(function: Callable[[], object], arguments: list[str]) -> tuple[int, str]:
    """Exit status and output of a command's function in a fork of this process."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            sys.argv = arguments
            status = 70
            try:
                sys.exit(function())
            except SystemExit as left:
                status = left.code if isinstance(left.code, int) else int(left.code is not None)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return status, output.read().decode("utf-8", "replace")


def main(pyproject: str, report: str) -> None:
    """Run the commands of the standard input."""
    scripts = tomllib.loads(Path(pyproject).read_text())["project"]["scripts"]
    places = {name: place.split(":") for name, place in scripts.items()}
    for module, _ in places.values():
        importlib.import_module(module)
    for module in PRELOADED:
        importlib.import_module(module)
    with open(report, "w") as file:
        for words in json.load(sys.stdin):
            command = words[-1].replace("\\\n", " ")
            line = shlex.split(command, comments=True) if words[0] == "bash" else []
            if line and line[0] in places:
                module, name = places[line[0]]
                status, output = run_forked(getattr(sys.modules[module], name), line)
            else:
                done = subprocess.run(
                    words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
                status, output = done.returncode, done.stdout
            file.write(json.dumps([status, output]) + "\n")
            file.flush()
            if status:
                return


if __name__ == "__main__":
    main(*sys.argv[1:])
