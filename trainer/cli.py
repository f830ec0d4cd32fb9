"""`im2sp-train`: shards in, a trained captioner out."""

import dataclasses
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import tyro

from im2sp.trainer.config import TrainConfig, with_files

if TYPE_CHECKING:
    from im2sp.trainer.loop import TrainResult

_FIELDS = [field.name for field in dataclasses.fields(TrainConfig)]
_GO_ON = "run the same command again to go on from the last checkpoint"


class _UsageError(ValueError):
    """The command line asks for what cannot be."""


class _Terminated(BaseException):
    """SIGTERM arrived."""


def main(args: list[str] | None = None) -> None:
    """Run the command; always leaves by SystemExit."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        config = _parsed(sys.argv[1:] if args is None else args)
        _run(config)
        sys.exit(0)
    except _UsageError as error:
        _fail(str(error), status=2)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _fail(what, status=1)
    except (ValueError, MemoryError) as error:
        _fail(str(error) or "no memory left", status=1)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0]
        _fail(
            f"no memory left: {first}; give a smaller --batch-size and a larger"
            " --grad-accumulation, or a smaller --max-length",
            status=1,
        )
    except KeyboardInterrupt:
        _fail(f"interrupted; {_GO_ON}", status=130)
    except _Terminated:
        _fail(f"terminated; {_GO_ON}", status=143)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(frozen=True, kw_only=True)
class _Flags(TrainConfig):
    __doc__ = TrainConfig.__doc__

    def __post_init__(self) -> None:
        """Nothing: `_parsed` checks, which says what is wrong in one line and not in a box."""


def _parsed(args: list[str]) -> TrainConfig:
    try:
        flags = tyro.cli(_Flags, prog="im2sp-train", args=with_files(args))
        return TrainConfig(**{name: getattr(flags, name) for name in _FIELDS})
    except ValueError as error:
        raise _UsageError(str(error)) from None


def _run(config: TrainConfig) -> None:
    for path in (config.shards, config.val_shards, config.text_model):
        if path is not None and not path.exists():
            raise _UsageError(f"{path}: no such file or folder")
    if config.out.exists() and not config.out.is_dir():
        raise _UsageError(f"--out {config.out}: not a folder")
    from im2sp.trainer.loop import train

    result = train(config, lambda message: print(f"im2sp-train: {message}", file=sys.stderr))
    if not result.is_first:
        return
    if config.json:
        print(json.dumps(dataclasses.asdict(result), default=os.fspath))
    elif not config.quiet:
        print(_summary(result))


def _summary(result: "TrainResult") -> str:
    """A few lines: what was done, how quickly, how well, and where it lies."""
    num_steps = result.step - result.first_step
    before = f", {result.first_step:,} of them before" if result.first_step else ""
    lines = [f"trained   {result.step:,} steps{before}"]
    if num_steps:
        lines[0] += (
            f"; {num_steps:,} in {result.train_s:.1f} s, {result.num_images / result.train_s:,.1f}"
            f" images/s, {result.num_tokens / result.train_s:,.0f} tokens/s"
        )
        lines.append(f"loss      {result.loss:.4f} over the last steps")
    else:
        lines[0] += "; nothing left to do"
    if result.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in result.skipped.items())
        lines.append(f"left out  {reasons}")
    if result.scores:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in result.scores.items())
        lines.append(f"best      step {result.best_step:,}: val {scores}")
    lines.append(f"written   {result.out}")
    return "\n".join(lines)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it is torch's way to say so, on a GPU or on the CPU; torch is not imported here."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _terminate(*_: object) -> None:
    raise _Terminated


def _fail(message: str, *, status: int) -> NoReturn:
    print(f"im2sp-train: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
