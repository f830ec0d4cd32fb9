"""A captioner as one file: the model and what its units mean, without a run's folder around it.

`model.safetensors` of a run holds the model; `state.json` beside it tells which tokenizers made the
units. An exported file holds both, in half precision if one likes: to keep, to pass on, to bundle.
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
    """Write a checkpoint as one file, whole or not at all; the same checkpoint, the same bytes.

    Args:
        checkpoint: Of a run whose target is speech or text.
        path: The file.
        precision: Of the tensors in the file; arithmetic is in float32 in any case.

    Returns:
        The notes: step, scores, and of each kind of units the fingerprint and the record of its
        tokenizer.

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
    """The notes of an exported file, None of any other."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            header = json.loads((file.metadata() or {})[METADATA_KEY])
        return header[NOTES_KEY]
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError):
        return None


def read_notes(path: Path) -> Mapping[str, Any]:
    """The notes of an exported file.

    Raises:
        WeightsError: It is none.
    """
    notes = find_notes(path)
    if notes is None:
        raise WeightsError(
            f"{path}: no exported captioner; expected a run of im2sp-train, or what"
            " tools/export_captioner.py makes of one"
        )
    return notes
