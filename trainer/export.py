"""Export of a captioner to one file: the model and the records of its tokenizers.

In a run's folder, `model.safetensors` holds the model and `state.json` records the tokenizers of
its units. An exported file holds both, optionally in half precision. The text model of a captioner
of text is a second file of the same name, with the suffix `.model`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch

from im2sp.shards.files import atomic_file, parse_json
from im2sp.shards.weights.pickles import WeightsError
from im2sp.trainer.checkpoint import Checkpoint, is_step
from im2sp.trainer.text import TEXT_MODEL_NAME
from im2sp.trainer.weights import BUNDLED, FORM, METADATA_KEY, load_model

NOTES_KEY = "captioner"
TEXT_MODEL_SUFFIX = ".model"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def export_model(
    checkpoint: Checkpoint, path: Path, precision: Literal["fp32", "fp16"] = "fp16"
) -> dict[str, Any]:
    """Write a checkpoint as one file, atomically; the same checkpoint gives the same bytes.

    The text model of a captioner of text is written first, to `path` with the suffix `.model`.

    Args:
        checkpoint: Checkpoint of a run with any target but words.
        path: The file.
        precision: Precision of the stored tensors; computation is in float32 in any case.

    Returns:
        The notes: step, scores, and for each kind of unit the fingerprint and record of its
        tokenizer and its column.

    Raises:
        ValueError: The checkpoint's target is words.
        WeightsError: The checkpoint's model cannot be read.
        OSError: Its text model cannot be read.
    """
    model = load_model(checkpoint.path, device="cpu")
    if model.config.vocabulary.kind == "words" or not model.config.has_image:
        kind = "its target is words" if model.config.has_image else "it is a language model"
        raise ValueError(f"{checkpoint.path}: {kind}, so it generates no descriptions")
    dtype = _DTYPES[precision]
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    state = checkpoint.state
    notes = {
        "step": checkpoint.step,
        "scores": state["scores"],
        "fingerprints": state["fingerprints"],
        "tokenizers": state.get("tokenizers", {}),
        "unit_columns": state.get("unit_columns", {"image": "image_units"}),
    }
    if model.config.vocabulary.kind == "text":
        notes["text_model_sha256"] = state["text_model_sha256"]
        text_model = text_model_path(checkpoint.path).read_bytes()
        with atomic_file(path.with_suffix(TEXT_MODEL_SUFFIX)) as file:
            file.write(text_model)
    header = {"form": FORM, "config": asdict(model.config), NOTES_KEY: notes}
    data = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(header)})
    with atomic_file(path) as file:
        file.write(data)
    return notes


def text_model_path(run: str | Path, name: str = TEXT_MODEL_NAME) -> Path:
    """Path of the text model of a captioner; it may not exist.

    Args:
        run: Bundled name, exported file, folder of a run or of one of its checkpoints.
        name: Name of the file in the folder of a run.
    """
    path = BUNDLED.get(str(run), Path(run))
    if path.is_file():
        return path.with_suffix(TEXT_MODEL_SUFFIX)
    return (path.parent if is_step(path) else path) / name


def find_notes(path: Path) -> Mapping[str, Any] | None:
    """The notes of an exported file; None for any other file."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            header = parse_json((file.metadata() or {})[METADATA_KEY])
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
