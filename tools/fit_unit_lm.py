"""Train a language model of speech units, for `im2sp-evaluate --speech-lm`.

    python tools/fit_unit_lm.py SHARDS --out runs/unit-lm [--preset mini] [--steps 20000]

It is the decoder of the captioner without an image, trained by the loop of im2sp-train (which does
the same with --without-image, and has all settings) on all utterances of the shards, those without
an image included. The same command resumes an interrupted run. Prints the mean log-likelihood of a
unit on the validation split. Exit codes: 0 done, 1 failed, 2 usage.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro

from im2sp.shards.command_line import print_message, run_command
from im2sp.shards.stores import folder_or_url
from im2sp.trainer.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class FitUnitLMConfig:
    """Train a language model of speech units, for im2sp-evaluate --speech-lm."""

    shards: tyro.conf.Positional[Path]
    """Dataset with speech units, a folder or URL."""
    out: Path
    """Folder of the run; created if it does not exist."""
    split: str | None = None
    """Training split; by default train, or all samples if the dataset has no splits."""
    preset: Literal["tiny", "mini", "small", "base"] = "mini"
    """Size of the decoder, as in im2sp-train."""
    steps: int = 20_000
    """Total number of optimizer steps."""
    batch_size: int = 16
    """Samples per step, with all of their utterances."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, each with a validation."""
    seed: int = 0
    """Random seed of initialisation, data order and dropout."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""
    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print the result as one JSON object."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    resume = "run the same command again to resume from the last checkpoint"
    return run_command(
        "fit_unit_lm", FitUnitLMConfig, _run, args, out=lambda config: config.out, resume=resume
    )


def _run(config: FitUnitLMConfig) -> None:
    from im2sp.trainer.loop import train

    settings = TrainConfig(
        shards=(str(folder_or_url(config.shards)),),
        out=config.out,
        without_image=True,
        split=config.split,
        preset=config.preset,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        checkpoint_every=config.checkpoint_every,
        seed=config.seed,
        device=config.device,
        quiet=config.quiet,
    )
    result = train(settings, partial(print_message, "fit_unit_lm"))
    # The loss counts the end of an utterance, too.
    likelihood = -result.scores["loss"] if result.scores else None
    found = {"out": str(result.out), "step": result.best_step, "val_log_likelihood": likelihood}
    if config.json:
        print(json.dumps(found))
    elif not config.quiet:
        shown = "no validation split" if likelihood is None else f"{likelihood:.4f} nats a token"
        print(f"{result.out}: step {result.best_step:,}, log-likelihood on val: {shown}")


if __name__ == "__main__":
    sys.exit(main())
