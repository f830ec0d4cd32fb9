"""UTMOS, predicted naturalness of speech (Saeki et al. 2022).

"UTMOS: UTokyo-SaruLab System for VoiceMOS Challenge 2022". The form is that of `utmos22_strong` of
tarepan/SpeechMOS, the strong learner without its phoneme encoder: a state dict of a wav2vec 2.0
(fairseq's names below `wav2vec2.`), embeddings of domain and judge, a bidirectional LSTM, and two
Linears. It is read by the restricted reader, and no code of the repository is used.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from im2sp.pipeline.speech_tokenizer.encoder import FIRST_FRAME_SAMPLES, HubertEncoder
from im2sp.pipeline.speech_tokenizer.weights import load_hubert
from im2sp.pipeline.tensors import read_weights, tensors_fingerprint
from im2sp.shards.weights.hub import find_weights
from im2sp.shards.weights.pickles import WeightsError

NAME = "utmos22_strong"
FILE_NAME = "utmos22_strong_step7459_v1.pt"
_RELEASE = "https://github.com/tarepan/SpeechMOS/releases/download/v1.0.0/"
_LAYER = "wav2vec2.encoder.layers."
_EMBEDDINGS = ("domain_emb", "judge_emb")
_SCALE, _OFFSET = 2, 3  # the network's output is in [-1, 1]; opinions are 1 to 5


class Utmos:
    """UTMOS; scores clips one by one.

    Args:
        name_or_path: `utmos22_strong`, from the folder of torch.hub or else downloaded; its file or
            the folder with it; or the hub id of a file.
        device: torch device; None for CUDA if available.

    Raises:
        ValueError: The weights do not exist, cannot be downloaded or are of another form.
    """

    name = "UTMOS"

    def __init__(self, name_or_path: str, device: str | None = None) -> None:
        path = _find(name_or_path)
        tensors = read_weights(path).tensors()
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        numbers = {int(n[len(_LAYER) :].split(".")[0]) for n in tensors if n.startswith(_LAYER)}
        if not numbers or any(name not in tensors for name in _EMBEDDINGS):
            raise WeightsError(f"{path}: not a UTMOS; expected {FILE_NAME} of {NAME}")
        weights = load_hubert(path, max(numbers) + 1)
        self._encoder = HubertEncoder(weights, torch.float32, self._device)
        extra = torch.cat([tensors[name].float().flatten() for name in _EMBEDDINGS])
        self._extra = extra.to(self._device)
        self._head = _Head(path, tensors, weights.width + len(extra)).to(self._device).eval()
        self.fingerprint = tensors_fingerprint({}, sorted(tensors.items()))

    @torch.no_grad()
    def score(self, samples: NDArray[np.float32]) -> dict[str, float]:
        """Score a clip.

        Args:
            samples: (T,) float32 in [-1, 1] at 16 kHz; clips under 400 samples are padded.

        Returns:
            `UTMOS`, 1 to 5.

        Raises:
            ValueError: No samples.
        """
        if not len(samples):
            raise ValueError("UTMOS of a clip without samples; skip the clip")
        padded = np.pad(samples, (0, max(0, FIRST_FRAME_SAMPLES - len(samples))))
        wave = torch.from_numpy(padded.astype(np.float32))[None].to(self._device)
        features = self._encoder(wave)[0]  # (T, D)
        inputs = torch.cat((features, self._extra.expand(len(features), -1)), 1)
        return {self.name: _SCALE * float(self._head(inputs).mean()) + _OFFSET}


class _Head(nn.Module):
    """Score of each frame, (T, D) -> (T, 1)."""

    def __init__(self, path: Path, tensors: dict[str, Tensor], width: int) -> None:
        super().__init__()
        names = ("blstm.weight_hh_l0", "projection.0.weight")
        if any(name not in tensors or tensors[name].ndim != 2 for name in names):
            raise WeightsError(f"{path}: lacks {' or '.join(names)} of a UTMOS")
        hidden, inner = tensors[names[0]].shape[1], len(tensors[names[1]])
        self.blstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.projection = nn.Sequential(
            nn.Linear(2 * hidden, inner), nn.ReLU(), nn.Linear(inner, 1)
        )
        kept = {name: tensors[name].float() for name in self.state_dict() if name in tensors}
        try:
            self.load_state_dict(kept)
        except RuntimeError as error:
            raise WeightsError(f"{path}: not the shapes of a UTMOS: {error}") from None

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.blstm(x[None])[0][0])


def _find(name_or_path: str) -> Path:
    """The file of the weights; that of torch.hub is downloaded if it is absent."""
    if name_or_path == NAME and not Path(NAME).exists():
        path = Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(_RELEASE + FILE_NAME, str(path), progress=False)
            except OSError as error:
                raise ValueError(
                    f"{NAME}: cannot be downloaded ({error}); copy {_RELEASE}{FILE_NAME} to {path},"
                    " or give its path"
                ) from None
        return path
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / FILE_NAME).is_file():
            raise ValueError(f"{folder}: lacks {FILE_NAME}")
        return folder / FILE_NAME
    return find_weights(name_or_path, {})
