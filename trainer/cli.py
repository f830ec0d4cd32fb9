"""Command `im2sp-train`: shards in, a trained captioner out."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from im2sp.shards.command_line import UsageError, parse_flags, print_message, run_command
from im2sp.shards.stores import is_url
from im2sp.trainer.config import TrainConfig
from im2sp.trainer.flags import with_files

if TYPE_CHECKING:
    from im2sp.trainer.loop import TrainResult

PROGRAM = "im2sp-train"
_RESUME = "run the same command again to resume from the last checkpoint"
_LESS_MEMORY = (
    "give a smaller --batch-size and a larger --grad-accumulation, or a smaller --max-length"
)


Log = Callable[[str], object]
Prepare = Callable[[TrainConfig, Log], object]


def main(args: list[str] | None = None, prepare: Prepare | None = None) -> None:
    """Run the command; always raises SystemExit.

    Args:
        args: The command line.
        prepare: Writes the features of the images first, for --input pixels; without it they have
            to be there.
    """
    sys.exit(
        run_command(
            PROGRAM,
            TrainConfig,
            partial(_run, prepare=prepare),
            args,
            parse=_parse,
            out=lambda config: config.out if is_first() else None,
            resume=_RESUME,
            memory_advice=_LESS_MEMORY,
        )
    )


def is_first() -> bool:
    """True on rank 0, which writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def _parse(args: Sequence[str]) -> TrainConfig:
    try:
        args = with_files(list(args))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return parse_flags(PROGRAM, TrainConfig, args, paired=("tensorboard",))


def _run(config: TrainConfig, prepare: Prepare | None = None) -> None:
    paths = (*config.shard_dirs, config.val_shards, config.text_model, config.image_root)
    for path in paths:
        if isinstance(path, Path) and not is_url(path) and not path.exists():
            raise UsageError(f"{path}: no such file or folder")

    log = partial(print_message, PROGRAM)
    if not config.quiet and is_first():
        log(f"reading {', '.join(map(str, config.shard_dirs))} ...")
    from im2sp.trainer.loop import train

    if config.input == "pixels" and prepare is not None:
        prepare(config, log if not config.quiet and is_first() else lambda _: None)
    result = train(config, log)
    if not result.is_first:
        return
    if config.json:
        print(json.dumps(dataclasses.asdict(result), default=os.fspath))
    elif not config.quiet:
        print(_summary(result))


def _summary(result: "TrainResult") -> str:
    """Steps, throughput, losses and the folder, in a few lines."""
    num_steps = result.step - result.first_step
    before = f", resumed at {result.first_step:,}" if result.first_step else ""
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
        lines.append(f"skipped   {reasons}")
    if result.scores:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in result.scores.items())
        lines.append(f"best      step {result.best_step:,}: val {scores}")
    lines.append(f"written   {result.out}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
