"""`im2sp-speak`: pictures in, spoken descriptions out; or speech units in, speech out."""

import dataclasses
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import tyro

from im2sp.tools.speak_config import SpeakConfig, UsageError

if TYPE_CHECKING:
    from im2sp.tools.speak_job import SpeakResult


class _Terminated(BaseException):
    """SIGTERM arrived."""


def main(args: list[str] | None = None) -> None:
    """Run the command; always leaves by SystemExit."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        config = tyro.cli(SpeakConfig, prog="im2sp-speak", args=args)
        config.check()
        sys.exit(_run(config))
    except UsageError as error:
        _fail(str(error), status=2)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _fail(what, status=1)
    except (ValueError, MemoryError) as error:
        _fail(str(error) or "no memory left", status=1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        _fail(f"no memory left on the device: {error}", status=1)
    except KeyboardInterrupt:
        _fail("interrupted", status=130)
    except _Terminated:
        _fail("terminated", status=143)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(config: SpeakConfig) -> int:
    def tell(line: str) -> None:
        print(f"im2sp-speak: {line}", file=sys.stderr, flush=True)

    if not config.quiet:
        tell(f"loading the vocoder {config.vocoder} ...")
    from im2sp.tools.speak_job import speak

    result = speak(config, tell)
    if config.json:
        print(json.dumps(dataclasses.asdict(result), default=os.fspath))
    elif not config.quiet:
        print(_summary(result))
    if not result.num_spoken:
        _fail(f"nothing could be spoken; see {result.out / 'rejects.jsonl'}", status=1)
    return 0


def _summary(result: "SpeakResult") -> str:
    """A few lines: what was spoken, how quickly, and where it lies."""
    lines = [
        f"spoken    {result.num_spoken:,} of {result.num_inputs:,} inputs: {result.speech_s:.1f} s"
        f" of speech, {result.num_units:,} units, in {result.elapsed_s:.1f} s",
        f"refused   {result.num_rejects:,}",
        f"written   {result.out / 'index.html'}",
    ]
    if result.num_rejects:
        lines[1] += f"; see {result.out / 'rejects.jsonl'}"
    if result.num_without_picture:
        lines.insert(1, f"left out  {result.num_without_picture:,} without a picture")
    return "\n".join(lines)


def _terminate(*_: object) -> None:
    raise _Terminated


def _fail(message: str, *, status: int) -> NoReturn:
    print(f"im2sp-speak: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
