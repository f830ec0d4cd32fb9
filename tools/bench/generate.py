"""Measure generation: units per second, ours against transformers' GIT with the same weights.

    python tools/bench/generate.py

Random weights with the preset's sizes. Both generate `max-tokens` from the same image units (EOS is
suppressed, so all rows have equal length), and the ids must be equal. Runs are interleaved; figures
are medians. See `tools/bench/timing.py` for the clock.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

import torch

from im2sp.shards.command_line import run_command
from im2sp.tools.bench.timing import clock_of, machine, medians, table, take_turns
from im2sp.tools.engines.git_reference import git_from, git_generate
from im2sp.trainer.generation import generate
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import Preset, preset_config
from im2sp.trainer.vocabulary import Vocabulary


def make_model(preset: Any, device: torch.device, seed: int = 0) -> Im2SpModel:
    """Model with random weights, large enough that tokens vary, and without EOS."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary(kind="speech", num_ids=200)
    model = Im2SpModel(preset_config(preset, vocabulary), torch.randn(8192, 32))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.normal_(std=1.5 * module.in_features**-0.5)
        for layer in model.decoder.stack():  # less influence of the image, so that the text matters
            layer.to_out.weight.mul_(0.2)
        model.decoder.positions.weight.normal_(std=0.3)
        model.decoder.embedding.weight.normal_(std=0.1)
        for special in (vocabulary.pad, vocabulary.bos, vocabulary.eos):
            model.decoder.output_bias[special] = -1e4
    return model.to(device).eval()


def measure(
    model: Im2SpModel, batch_size: int, num_beams: int, max_tokens: int, num_rounds: int
) -> dict[str, Any]:
    """Return one row of figures.

    Raises:
        ValueError: The two generate different ids.
    """
    device = next(model.parameters()).device
    config = model.config
    generator = torch.Generator().manual_seed(1)
    size = (batch_size, *config.shape)
    image_units = torch.randint(0, config.num_codes, size, generator=generator).to(device)
    reference = git_from(model)
    results: dict[str, list[list[int]]] = {}

    def ours() -> None:
        results["ours"] = generate(model, image_units, num_beams, max_tokens)

    def transformers() -> None:
        rows = git_generate(reference, image_units, num_beams, max_tokens)
        results["transformers"] = [config.vocabulary.decode(row) for row in rows]

    calls = {"ours": ours, "transformers": transformers}
    clock = clock_of(str(device))
    seconds = medians(take_turns(calls, num_rounds, clock=clock, num_warmups=1))
    if results["ours"] != results["transformers"]:
        raise ValueError(f"batch {batch_size}, {num_beams} beams: the two generate different ids")
    num_units = sum(map(len, results["ours"]))
    return {
        "batch": batch_size,
        "beams": num_beams,
        "units": num_units,
        "distinct units": len({unit for row in results["ours"] for unit in row}),
        "ours, units/s": round(num_units / seconds["ours"], 1),
        "transformers, units/s": round(num_units / seconds["transformers"], 1),
        "ratio": round(seconds["transformers"] / seconds["ours"], 2),
    }


@dataclass(frozen=True, kw_only=True)
class BenchGenerateConfig:
    """Measure generation against transformers' GIT with the same weights."""

    preset: Preset = "small"
    """Size of the model."""
    batch: tuple[int, ...] = (1, 8)
    """Batch sizes."""
    beams: tuple[int, ...] = (1, 5)
    """Numbers of beams."""
    max_tokens: int = 110
    """Length of each generation."""
    num_rounds: int = 3
    """Rounds per case."""
    json: bool = False
    """Print JSON rows only, no table."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_generate", BenchGenerateConfig, _run, args)


def _run(config: BenchGenerateConfig) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    model = make_model(config.preset, device)
    rows: list[dict[str, Any]] = []
    for batch_size in config.batch:
        for num_beams in config.beams:
            row = measure(model, batch_size, num_beams, config.max_tokens, config.num_rounds)
            rows.append({"preset": config.preset, **row})
            print(json.dumps(rows[-1]), flush=True)
    if not config.json:
        print(f"\none thread of {machine('torch', 'transformers', device=str(device))}\n")
        print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
