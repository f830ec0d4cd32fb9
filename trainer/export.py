"""Export of a captioner to one file: the model and the records of its tokenizers.

In a run's folder, `model.safetensors` holds the model and `state.json` records the tokenizers of
its units. An exported file holds both, optionally in half precision.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch

from im2sp.shards.files import atomic_file
from im2sp.shards.weights.pickles import WeightsError
from im2sp.trainer.checkpoint import Checkpoint
from im2sp.trainer.weights import FORM, METADATA_KEY, load_model

NOTES_KEY = "captioner"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def export_model(
    checkpoint: Checkpoint, path: Path, precision: Literal["fp32", "fp16"] = "fp16"
) -> dict[str, Any]:
    """Write a checkpoint as one file, atomically; the same checkpoint gives the same bytes.

    Args:
        checkpoint: Checkpoint of a run whose target is speech or text.
        path: The file.
        precision: Precision of the stored tensors; computation is in float32 in any case.

    Returns:
        The notes: step, scores, and the fingerprint and record of the tokenizer of each kind of
        unit.

    Raises:
        WeightsError: The checkpoint's model cannot be read.
    """
    model = load_model(checkpoint.path, device="cpu")
    dtype = _DTYPES[precision]
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    state = checkpoint.state
    notes = {
        "step": checkpoint.step,
        "scores": state["scores"],
        "fingerprints": state["fingerprints"],
        "tokenizers": state.get("tokenizers", {}),
    }
    header = {"form": FORM, "config": asdict(model.config), NOTES_KEY: notes}
    data = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(header)})
    with atomic_file(path) as file:
        file.write(data)
    return notes


def find_notes(path: Path) -> Mapping[str, Any] | None:
    """The notes of an exported file; None for any other file."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})[METADATA_KEY])
        return header[NOTES_KEY]
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError):
        return None


def read_notes(path: Path) -> Mapping[str, Any]:
    """The notes of an exported file.

    Raises:
        WeightsError: The file is not an exported captioner.
    """
    notes = find_notes(path)
    if notes is None:
        raise WeightsError(
            f"{path}: not an exported captioner; expected a run of im2sp-train, or a file written"
            " by tools/export_captioner.py"
        )
    return notes
