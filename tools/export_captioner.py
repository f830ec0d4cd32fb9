"""Export a run to one file: the model, and the identity of its tokenizers.

    python tools/export_captioner.py runs/speech captioner.safetensors [--precision fp32]

Exports the best checkpoint, or the one whose folder is given. `im2sp-speak --run
captioner.safetensors` and `im2sp-evaluate` accept the file instead of the run. The text model of a
captioner of text is written beside it, as `captioner.model`. Half precision (the default) halves
its size and changes a few generated units. Exit codes: 0 written, 1 not possible, 2
usage.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from im2sp.shards.command_line import run_command
from im2sp.tools.speaking.captioner import find_step
from im2sp.trainer.export import export_model


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a run to one file: the model and the identity of its tokenizers."""

    run: tyro.conf.Positional[Path]
    """Run of im2sp-train (its best checkpoint is used), or one of its checkpoints."""
    out: tyro.conf.Positional[Path]
    """File to write, .safetensors."""
    precision: Literal["fp16", "fp32"] = "fp16"
    """Precision of the stored weights; fp16 halves the file and changes a few generated units."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("export_captioner", ExportConfig, _run, args)


def _run(config: ExportConfig) -> None:
    checkpoint = find_step(config.run)
    export_model(checkpoint, config.out, config.precision)
    size = config.out.stat().st_size
    print(f"{config.out}: step {checkpoint.step:,}, {config.precision}, {size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
