"""Text-to-unit models (T2U): load, save, and sentences to speech units."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from im2sp.pipeline.tensors import checked_tensor, read_weights, tensors_fingerprint
from im2sp.pipeline.text_to_units.network import NetworkConfig, TextToUnitsNetwork
from im2sp.shards.files import parse_json
from im2sp.shards.weights.hub import find_weights
from im2sp.shards.weights.pickles import WeightsError

BUNDLED = {"compact": Path(__file__).parent / "compact.safetensors"}
METADATA_KEY = "im2sp"


class TextToUnits:
    """Converts English text to the units of a speech tokenizer.

    Attributes:
        name: Name that it was loaded by; for a path, only the last part.
        num_units: Units are in [0, num_units).
        speech_fingerprint: Fingerprint of the speech tokenizer of its units.
        fingerprint: sha256 of settings and weights.
    """

    def __init__(
        self, network: TextToUnitsNetwork, *, name: str, speech_fingerprint: str | None
    ) -> None:
        self.network = network.eval()
        self.name = name
        self.num_units = network.config.num_units
        self.speech_fingerprint = speech_fingerprint
        state = network.state_dict().items()
        self.fingerprint = tensors_fingerprint(asdict(network.config), state)

    def units(self, text: str) -> list[int]:
        """Units of a text, collapsed; none if it has no letter and no digit."""
        return self.network.units(text) if any(c.isalnum() for c in text) else []


def load_text_to_units(
    name_or_path: str | Path = "compact", *, device: str | torch.device | None = None
) -> TextToUnits:
    """Load a text-to-unit model; no code in the file is executed.

    Args:
        name_or_path: "compact" (bundled), a hub id, or a file of `tools/fit_text_to_units.py`.
        device: torch device; None for CUDA if available.

    Raises:
        WeightsError: (a ValueError) One line with what was found and what was expected.
    """
    path = find_weights(name_or_path, BUNDLED)
    weights = read_weights(path)
    try:
        notes = parse_json(weights.metadata[METADATA_KEY])
        config = NetworkConfig(**notes["text_to_units"])
        speech_fingerprint = (notes.get("speech_tokenizer") or {}).get("fingerprint")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a text-to-unit model ({error}); expected a file of"
            " tools/fit_text_to_units.py"
        ) from None
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in TextToUnitsNetwork(config).state_dict().items()}
    found = weights.tensors()
    tensors = {
        name: checked_tensor(path, found, name, shape, what="a text-to-unit model")
        for name, shape in shapes.items()
    }
    network = TextToUnitsNetwork(config)
    network.load_state_dict(tensors)
    name = str(name_or_path) if str(name_or_path) in BUNDLED else path.name
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return TextToUnits(network.to(device), name=name, speech_fingerprint=speech_fingerprint)


def text_to_units_bytes(
    network: TextToUnitsNetwork,
    speech_tokenizer: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
    notes: Mapping[str, Any] | None = None,
) -> bytes:
    """Serialise a network as one safetensors file.

    Args:
        network: The network.
        speech_tokenizer: Record of the speech tokenizer of its units, with its fingerprint.
        dtype: Type of the stored tensors.
        notes: Further metadata; JSON values.
    """
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in network.state_dict().items()
    }
    metadata = {
        **(notes or {}),
        "text_to_units": asdict(network.config),
        "speech_tokenizer": dict(speech_tokenizer),
    }
    return save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
