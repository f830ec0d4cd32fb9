"""Train a text-to-unit model (T2U): what `im2sp-speak` says of an image, without a synthesizer.

    python tools/fit_text_to_units.py SHARDS --out runs/t2u [--steps 3000]

Learns from the utterances of the shards and their captions; those of the split `val`, if there is
one, measure it. The same command resumes an interrupted run. Writes `text_to_units.safetensors` and
`card.json`. Exit codes: 0 done, 1 failed, 2 usage.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch.nn.utils.rnn import pad_sequence

from im2sp.pipeline.text_to_units.model import text_to_units_bytes
from im2sp.pipeline.text_to_units.network import (
    FRAMES,
    NetworkConfig,
    TextToUnitsNetwork,
    characters,
)
from im2sp.shards import ShardDataset, UnitColumn
from im2sp.shards.command_line import print_message, run_command
from im2sp.shards.files import atomic_file
from im2sp.shards.stores import folder_or_url
from im2sp.tools.engines.asr import edits

WEIGHTS_FILE, CHECKPOINT_FILE, CARD_FILE = "text_to_units.safetensors", "checkpoint.pt", "card.json"
WARM_UP_STEPS = 100
EVERY_STEPS = 100
MAX_VAL = 200

Pair = tuple[list[int], list[int]]
"""Characters of a caption and units of its utterance."""


@dataclass(frozen=True, kw_only=True)
class FitTextToUnitsConfig:
    """Train a model from captions to the speech units of their utterances."""

    shards: tyro.conf.Positional[Path]
    """Dataset with captions and speech units, a folder or URL."""
    out: Path
    """Folder of the run; created if it does not exist."""
    split: str | None = None
    """Training split; by default train, or all samples if the dataset has no splits."""
    val_split: str = "val"
    """Split on which the unit error rate is measured, if there is one: its first utterances."""
    steps: int = 3000
    """Total number of optimizer steps."""
    batch_size: int = 32
    """Utterances per step."""
    learning_rate: float = 2e-3
    """Peak learning rate; cosine schedule."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    width: int = 192
    """Width of the network."""
    depth: int = 4
    """Blocks at the rate of characters, and as many at the rate of frames."""
    precision: Literal["fp16", "fp32"] = "fp16"
    """Precision of the stored weights."""
    seed: int = 0
    """Random seed."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""
    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print the card as one JSON object."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        for name in ("steps", "batch_size", "width", "depth"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(self, name)}; expected at least 1")


def read_pairs(dataset: ShardDataset) -> list[Pair]:
    """Captions and units of the utterances that are short enough for CTC, in order."""
    pairs: list[Pair] = []
    for sample in dataset:
        for text, units in zip(sample.captions, sample.speech_units or (), strict=False):
            ids = characters(text)
            repeats = int((units[1:] == units[:-1]).sum())
            if len(units) > 0 and len(units) + repeats <= FRAMES * len(ids):
                pairs.append((ids, units.tolist()))
    return pairs


def loss_of(network: TextToUnitsNetwork, pairs: Sequence[Pair]) -> torch.Tensor:
    """CTC loss in nats a unit."""
    device = network.output.weight.device
    ids = pad_sequence([torch.tensor(pair[0]) for pair in pairs], batch_first=True)
    targets = torch.tensor([unit + 1 for _, units in pairs for unit in units])
    scores = network(ids.to(device)).float().log_softmax(-1).transpose(0, 1)
    frames = torch.tensor([FRAMES * len(pair[0]) for pair in pairs])
    lengths = torch.tensor([len(pair[1]) for pair in pairs])
    total = F.ctc_loss(scores, targets.to(device), frames, lengths, reduction="sum")
    return total / len(targets)


def unit_error_rate(network: TextToUnitsNetwork, dataset: ShardDataset) -> float | None:
    """Edit distance of generated to recorded units, by the number of recorded ones."""
    errors = num_units = 0
    for _, sample in zip(range(MAX_VAL), dataset, strict=False):
        for text, units in zip(sample.captions, sample.speech_units or (), strict=False):
            errors += edits(network.units(text), units.tolist())
            num_units += len(units)
    return errors / num_units if num_units else None


def train(
    config: FitTextToUnitsConfig, pairs: Sequence[Pair], num_units: int
) -> TextToUnitsNetwork:
    """Train a network on pairs, or resume from the checkpoint in `config.out`.

    Raises:
        ValueError: The checkpoint was made with other settings, or the loss is not finite.
    """
    torch.manual_seed(config.seed)
    sizes = NetworkConfig(num_units=num_units, width=config.width, depth=config.depth)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = TextToUnitsNetwork(sizes).to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    path = config.out / CHECKPOINT_FILE
    notes = {**asdict(sizes), "num_pairs": len(pairs)}
    notes |= {name: getattr(config, name) for name in ("batch_size", "learning_rate", "seed")}
    start = 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        if state["notes"] != notes:
            raise ValueError(
                f"{path}: made with other settings ({state['notes']}); use another --out, or the"
                " settings it was made with"
            )
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in range(start, config.steps):
        schedule = 0.5 + 0.5 * math.cos(math.pi * step / config.steps)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min((step + 1) / WARM_UP_STEPS, schedule)
        drawn = np.random.default_rng((config.seed, step)).integers(
            len(pairs), size=config.batch_size
        )
        loss = loss_of(network, [pairs[i] for i in drawn])
        if not math.isfinite(value := loss.item()):
            raise ValueError(f"loss is {value} at step {step}; lower --learning-rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % EVERY_STEPS == 0 or step + 1 == config.steps:
            if not config.quiet:
                print_message("fit_text_to_units", f"step {step + 1:,}, loss {value:.3f}")
            with atomic_file(path) as file:
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "step": step + 1, "notes": notes}, file)
    return network


def _run(config: FitTextToUnitsConfig) -> None:
    whole = ShardDataset(folder_or_url(config.shards))
    column = whole.columns.get("speech_units")
    split = config.split or ("train" if "train" in whole.manifest.splits else None)
    dataset = whole if split is None else ShardDataset(folder_or_url(config.shards), split)
    pairs = read_pairs(dataset)
    if not pairs or not isinstance(column, UnitColumn):
        raise ValueError(
            f"{config.shards}: no utterance with a caption; expected a dataset of captions and"
            " their recordings, such as tools/flickr8k_spoken.py and im2sp-tokenize make"
        )
    config.out.mkdir(parents=True, exist_ok=True)
    network = train(config, pairs, column.num_codes).eval()
    error_rate = None
    if config.val_split in whole.manifest.splits and config.val_split != split:
        error_rate = unit_error_rate(
            network, ShardDataset(folder_or_url(config.shards), config.val_split)
        )
    card: dict[str, Any] = {
        "steps": config.steps,
        "num_utterances": len(pairs),
        "num_parameters": sum(p.numel() for p in network.parameters()),
        "unit_error_rate": error_rate,
        "torch": torch.__version__,
    }
    dtype = torch.float16 if config.precision == "fp16" else torch.float32
    record = dict(whole.manifest.tokenizer_of("speech_units") or {})
    with atomic_file(config.out / WEIGHTS_FILE) as file:
        file.write(text_to_units_bytes(network, record, dtype, card))
    with atomic_file(config.out / CARD_FILE) as file:
        file.write(json.dumps(card, indent=2).encode() + b"\n")
    if config.json:
        print(json.dumps(card))
    elif not config.quiet:
        shown = "not measured" if error_rate is None else f"{error_rate:.3f}"
        print(f"{config.out / WEIGHTS_FILE}: unit error rate on {config.val_split} {shown}")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    resume = "run the same command again to resume from the last checkpoint"
    return run_command(
        "fit_text_to_units",
        FitTextToUnitsConfig,
        _run,
        args,
        out=lambda config: config.out,
        resume=resume,
    )


if __name__ == "__main__":
    sys.exit(main())
