"""Predictors of opinions by name, and DNSMOS (Reddy et al. 2021 and 2022).

    load_predictor("dnsmos")
    load_predictor("utmos22_strong")
    load_predictor("MOSNet/pre_trained/cnn_blstm.h5")

The models of DNSMOS are in the package speechmos. It is not imported, because it needs librosa for
one spectrogram, which is computed here; the scores agree to 1e-4.
"""

import importlib.metadata
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from im2sp.tools.engines.asr import RATE_HZ

DNSMOS = "dnsmos"
SCORES = ("OVRL", "SIG", "BAK", "P808")
"""P.835's overall quality, speech and background, and P.808's overall quality; all 1 to 5."""
FOLDER = "dnsmos_models"
P835_MODEL, P808_MODEL = "sig_bak_ovr.onnx", "model_v8.onnx"
WINDOW_SAMPLES = int(9.01 * RATE_HZ)
_FRAME, _HOP, _MELS = 321, 160, 120
# Polynomials from the P.835 model's outputs, in their order, to opinion scores (by its authors).
_OPINIONS = {
    "SIG": (-0.08397278, 1.22083953, 0.0052439),
    "BAK": (-0.13166888, 1.60915514, -0.39604546),
    "OVRL": (-0.06766283, 1.11546468, 0.04602535),
}


class Predictor(Protocol):
    """Predictor of opinions."""

    @property
    def name(self) -> str:
        """Its common name."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity: fingerprint of the weights, or version of the package."""
        ...

    def score(self, samples: NDArray[np.float32]) -> dict[str, float]:
        """Opinions, 1 to 5, of a clip: (T,) float32 in [-1, 1] at 16 kHz, T >= 1."""
        ...


def load_predictor(name: str, device: str | None = None) -> Predictor:
    """Load a predictor.

    Args:
        name: "dnsmos"; "utmos22_strong", or the path or hub id of its weights (see `utmos`); or the
            path of MOSNet's weights (see `mosnet`).
        device: torch device; None for CUDA if available. Not used by DNSMOS.

    Raises:
        ValueError: A package or the weights are missing, or of another form.
    """
    if name == DNSMOS:
        return Dnsmos()
    # Imported here, because they import torch.
    from im2sp.tools.engines.mosnet import FILE_NAME, SUFFIXES, Mosnet
    from im2sp.tools.engines.utmos import Utmos

    path = Path(name).expanduser()
    if path.suffix in SUFFIXES or (path / FILE_NAME).is_file():
        return Mosnet(path, device)
    return Utmos(name, device)


class Dnsmos:
    """DNSMOS models; score clips one by one."""

    name = "DNSMOS"

    def __init__(self) -> None:
        """Load the models.

        Raises:
            ValueError: speechmos or onnxruntime is not installed, or the models are damaged.
        """
        spec = importlib.util.find_spec("speechmos")
        places = (spec.submodule_search_locations or []) if spec else []
        folder = next((Path(place) / FOLDER for place in places), None)
        if folder is None or importlib.util.find_spec("onnxruntime") is None:
            raise ValueError(
                "DNSMOS needs speechmos and onnxruntime: pip install 'im2sp[evaluate]'"
            )
        import onnxruntime

        self.fingerprint = f"speechmos {importlib.metadata.version('speechmos')}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        cpu = ["CPUExecutionProvider"]
        try:
            self._p835, self._p808 = (
                onnxruntime.InferenceSession(str(folder / name), options, providers=cpu)
                for name in (P835_MODEL, P808_MODEL)
            )
        except Exception as error:
            # onnxruntime raises a dozen exception types that have only Exception in common.
            raise ValueError(f"DNSMOS: {folder}: {str(error).splitlines()[0]}") from None

    def score(self, samples: NDArray[np.float32]) -> dict[str, float]:
        """The `SCORES` of a clip, (T,) float32 in [-1, 1] at 16 kHz.

        Windows of 9.01 s, one every second, are averaged; a shorter clip is repeated.

        Raises:
            ValueError: No samples.
        """
        if not len(samples):
            raise ValueError("DNSMOS of a clip without samples; skip the clip")
        while len(samples) < WINDOW_SAMPLES:
            samples = np.concatenate([samples, samples])
        num_windows = int(len(samples) // RATE_HZ - 9.01) + 1
        rows: list[list[float]] = []
        for second in range(num_windows):
            # As in the authors' code, the end is rounded down, so some windows lack a sample.
            window = samples[second * RATE_HZ : int((second + 9.01) * RATE_HZ)]
            if len(window) >= WINDOW_SAMPLES:
                rows.append(self._window(window.astype(np.float32)))
        means = np.mean(rows, axis=0)
        return {name: float(mean) for name, mean in zip(SCORES, means, strict=True)}

    def _window(self, window: NDArray[np.float32]) -> list[float]:
        output: Any = self._p835.run(None, {"input_1": window[None]})[0]
        p835 = {
            name: float(np.polyval(polynomial, raw))
            for (name, polynomial), raw in zip(_OPINIONS.items(), output[0], strict=True)
        }
        mel = log_mel(window[:-160])[None].astype(np.float32)
        output = self._p808.run(None, {"input_1": mel})[0]
        return [p835["OVRL"], p835["SIG"], p835["BAK"], float(output[0][0])]


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """(frames, 120) mel spectrogram in units of 40 dB around -40 dB of its maximum, 80 dB deep.

    Frames of 321 samples (Hann) are centred at every 160th sample, zero-padded.
    """
    padded = np.pad(samples, _FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    mel = np.maximum(power @ _mel_filters().T, 1e-10)
    decibels = 10 * np.log10(mel / mel.max())
    return (np.maximum(decibels, -80) + 40) / 40


@lru_cache(maxsize=1)
def _mel_filters() -> NDArray[np.float64]:
    """(120, 161) triangles of equal area on Slaney's scale from 0 to 8 kHz."""

    def to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
        above = 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
        return np.where(hz < 1000, hz * 3 / 200, above)

    def to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)))

    ends = to_mel(np.array([0.0, RATE_HZ / 2]))
    corners = to_hz(np.linspace(ends[0], ends[1], _MELS + 2))
    bins = np.fft.rfftfreq(_FRAME, 1 / RATE_HZ)
    widths = np.diff(corners)
    slopes = corners[:, None] - bins
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * (2 / (corners[2:] - corners[:-2]))[:, None]
