"""`im2sp-speak`: images to descriptions in speech and text, or speech units to speech."""

import dataclasses
import json
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from im2sp.shards.command_line import print_message, run_command
from im2sp.tools.speaking.config import SpeakConfig

if TYPE_CHECKING:
    from im2sp.tools.speaking.run import SpeakResult

PROGRAM = "im2sp-speak"


def main(args: list[str] | None = None) -> None:
    """Run the command; always leaves by SystemExit."""
    sys.exit(run_command(PROGRAM, SpeakConfig, _run, args, out=lambda config: config.out))


def _run(config: SpeakConfig) -> int:
    log = partial(print_message, PROGRAM)
    if not config.quiet:
        log("loading the models ...")
    from im2sp.tools.speaking.run import speak

    result = speak(config, log)
    if config.json:
        print(json.dumps(dataclasses.asdict(result), default=os.fspath))
    elif not config.quiet:
        print(_summary(result))
    if not result.num_spoken:
        print_message(PROGRAM, f"nothing was described; see {result.out / 'rejects.jsonl'}")
        return 1
    return 0


def _summary(result: "SpeakResult") -> str:
    """Counts, times and the output page, in a few lines."""
    speech = f": {result.speech_s:.1f} s of speech, {result.num_units:,} units," * bool(
        result.num_units
    )
    lines = [
        f"described {result.num_spoken:,} of {result.num_inputs:,} inputs{speech} in"
        f" {result.elapsed_s:.1f} s",
        f"refused   {result.num_rejects:,}",
        f"written   {result.out / 'index.html'}",
    ]
    if result.num_rejects:
        lines[1] += f"; see {result.out / 'rejects.jsonl'}"
    if result.num_without_picture:
        lines.insert(1, f"skipped   {result.num_without_picture:,} without an image")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
