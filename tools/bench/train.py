"""Measure a training step: tokens per second, ours against transformers' GIT.

    python tools/bench/train.py

Both have the same weights and the same batch: images with five captions each. Ours encodes each
image once; in transformers, each caption is a sample with its own image ("image a caption"). In the
row "image states repeated", the encoder of the transformers model also runs once per image, and its
output is repeated for the captions. A step is loss and gradients; the optimizer takes the same time
for all and is excluded. The losses must agree (checked without dropout).

On a GPU, the model's share of the measured rate of bfloat16 matrix products is printed as well.
Runs are interleaved; figures are medians. See `tools/bench/timing.py` for the clock.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from im2sp.shards.command_line import run_command
from im2sp.tools.bench.timing import clock_of, machine, medians, table, take_turns
from im2sp.tools.engines.git_reference import git_from, git_loss
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import ModelConfig, Preset, preset_config
from im2sp.trainer.vocabulary import Vocabulary

CAPTIONS = 5


def make_batch(config: ModelConfig, num_images: int, num_ids: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image units, tokens and image index; captions have equal length, without padding."""
    generator = torch.Generator().manual_seed(1)
    size = (num_images, *config.shape)
    image_units = torch.randint(0, config.num_codes, size, generator=generator)
    shape = (CAPTIONS * num_images, num_ids)
    ids = torch.randint(0, config.vocabulary.num_ids, shape, generator=generator)
    tokens = config.vocabulary.encode_batch(ids, torch.full((len(ids),), num_ids))
    return image_units, tokens, torch.arange(num_images).repeat_interleave(CAPTIONS)


def model_flops(config: ModelConfig, num_images: int, num_texts: int, length: int) -> float:
    """FLOPs of a step: three times those of the Linears and attention."""
    states, image, text = config.num_states, num_images, num_texts * length
    e, d = config.encoder, config.decoder

    def layer(width: int, mlp_width: int) -> int:
        return 2 * width * (4 * width + 2 * mlp_width)

    encoder = image * states * e.depth * (layer(e.width, e.mlp_width) + 4 * states * e.width)
    prefix = image * states * (d.depth - 1) * (layer(d.width, d.mlp_width) + 4 * states * d.width)
    seen = states + (length + 1) / 2
    decoder = text * d.depth * (layer(d.width, d.mlp_width) + 4 * seen * d.width)
    return 3 * (encoder + prefix + decoder + text * 2 * d.width * config.vocabulary.size)


def matrix_rate(device: torch.device) -> float:
    """FLOPs per second of a large bfloat16 matrix product."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        torch.mm(a, b)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(20):
        torch.mm(a, b)
    torch.cuda.synchronize(device)
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


def make_calls(
    model: Im2SpModel, batch: tuple[Tensor, Tensor, Tensor], precision: str, names: list[str]
) -> dict[str, Callable[[], Tensor]]:
    """Functions that compute the loss and its gradients, by name."""
    image_units, tokens, owner = batch
    reference, pad = git_from(model), model.config.vocabulary.pad
    encoder = reference.git.image_encoder

    def repeated() -> Tensor:
        whole, once = encoder.forward, encoder(image_units[:, None])
        once.last_hidden_state = once.last_hidden_state.index_select(0, owner)
        encoder.forward = lambda *_, **__: once
        try:
            return git_loss(reference, image_units[owner], tokens, pad)
        finally:
            encoder.forward = whole

    losses: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: model.loss(image_units, tokens, None),
        "image a caption": lambda: git_loss(reference, image_units[owner], tokens, pad),
        "image states repeated": repeated,
    }

    def step(loss_of: Callable[[], Tensor]) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        loss.backward()
        model.zero_grad()
        reference.zero_grad()
        return loss.detach()

    return {name: lambda call=losses[name]: step(call) for name in names}


def measure(
    config: ModelConfig, device: torch.device, options: "BenchTrainConfig", precision: str
) -> list[dict[str, Any]]:
    """Return rows of figures for one precision.

    Raises:
        ValueError: The losses differ.
    """
    torch.manual_seed(0)
    codebook = torch.randn(config.num_codes, config.code_width)
    model = Im2SpModel(config, codebook).to(device)
    image_units, tokens, owner = make_batch(config, options.images, options.units)
    batch = (image_units.to(device), tokens.to(device), owner.to(device))
    names = ["ours", "image a caption", "image states repeated"]
    checks = make_calls(model.eval(), batch, "fp32", names)
    check = {name: call().item() for name, call in checks.items()}
    if max(check.values()) - min(check.values()) > 1e-3:
        raise ValueError(f"the losses differ: {check}")
    calls = make_calls(model.train(), batch, precision, names)
    clock = clock_of(str(device))
    seconds = medians(take_turns(calls, options.num_rounds, clock=clock, num_warmups=1))
    num_tokens = tokens.shape[0] * (tokens.shape[1] - 1)
    rows: list[dict[str, Any]] = []
    for name in names:
        row = {
            "preset": options.preset,
            "precision": precision,
            "dropout": config.dropout,
            "case": name if name == "ours" else f"transformers, {name}",
            "tokens/s": round(num_tokens / seconds[name]),
            "ours is faster by": round(seconds[name] / seconds["ours"], 2),
        }
        if device.type == "cuda" and name == "ours":
            flops = model_flops(config, options.images, len(tokens), tokens.shape[1] - 1)
            share = flops / seconds[name] / matrix_rate(device)
            print(json.dumps({"share_of_matrix_rate": round(share, 3)}))
        rows.append(row)
    return rows


@dataclass(frozen=True, kw_only=True)
class BenchTrainConfig:
    """Measure a training step against transformers' GIT."""

    preset: Preset = "small"
    """Size of the model."""
    images: int = 8
    """Images per batch."""
    units: int = 110
    """Units per caption."""
    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    """Precisions to time."""
    dropout: tuple[float, ...] = (0.1,)
    """Dropout rates to time."""
    num_rounds: int = 3
    """Rounds per case."""
    json: bool = False
    """Print JSON rows only, no table."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_train", BenchTrainConfig, _run, args)


def _run(options: BenchTrainConfig) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    config = preset_config(options.preset, Vocabulary(kind="speech", num_ids=200))
    rows: list[dict[str, Any]] = []
    for dropout in options.dropout:
        for precision in options.precision:
            changed = replace(config, dropout=dropout, attention_dropout=dropout)
            for row in measure(changed, device, options, precision):
                rows.append(row)
                print(json.dumps(row), flush=True)
    if not options.json:
        print(f"\none thread of {machine('torch', 'transformers', device=str(device))}\n")
        print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
