"""MOSNet, predicted naturalness of speech (Lo et al. 2019).

"MOSNet: Deep Learning based Objective Assessment for Voice Conversion". The form is
`pre_trained/cnn_blstm.h5` of lochenchou/MOSNet: the weights of a Keras model in HDF5, read by h5py.
The network is computed by torch, with the sizes of the file: magnitude spectrogram, twelve
convolutions of 3x3 (every third divides the frequencies by 3), a bidirectional LSTM, two Linears
for each frame, and their mean.

Legend: `T` frames, `F` frequencies, `C` channels.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

FILE_NAME = "cnn_blstm.h5"
SUFFIXES = (".h5", ".hdf5")
_FFT, _HOP = 512, 256
_NUM_CONVOLUTIONS, _STRIDE = 12, 3
_NUM_ARRAYS = 2 * _NUM_CONVOLUTIONS + 6 + 4


class Mosnet:
    """MOSNet; scores clips one by one.

    Args:
        path: The file, or the folder with it.
        device: torch device; None for CUDA if available.

    Raises:
        ValueError: h5py is not installed, or the file is missing or has another form.
    """

    name = "MOSNet"

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        path = Path(path).expanduser()
        path = path / FILE_NAME if path.is_dir() else path
        arrays = _read(path)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        tensors = [torch.from_numpy(array.astype(np.float32)) for array in arrays]
        try:
            self._network = _Network(tensors).to(device).eval()
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"{path}: not the shapes of a MOSNet: {error}") from None
        self._window = torch.hamming_window(_FFT, periodic=False, device=device)
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        self.fingerprint = digest.hexdigest()

    @torch.no_grad()
    def score(self, samples: NDArray[np.float32]) -> dict[str, float]:
        """Score a clip.

        Args:
            samples: (T,) float32 in [-1, 1] at 16 kHz; clips under 512 samples are padded.

        Returns:
            `MOSNet`, about 1 to 5.

        Raises:
            ValueError: No samples.
        """
        if not len(samples):
            raise ValueError("MOSNet of a clip without samples; skip the clip")
        padded = np.pad(samples, (0, max(0, _FFT - len(samples)))).astype(np.float32)
        wave = torch.from_numpy(padded).to(self._window.device)
        spectrum = torch.stft(
            wave, _FFT, _HOP, window=self._window, pad_mode="reflect", return_complex=True
        )
        return {self.name: float(self._network(spectrum.abs().T).mean())}


class _Network(nn.Module):
    """Magnitudes (T, 257) -> score of each frame (T, 1)."""

    def __init__(self, arrays: list[Tensor]) -> None:
        """Take the arrays in the order of the Keras model."""
        super().__init__()
        convolutions, recurrent = arrays[: 2 * _NUM_CONVOLUTIONS], arrays[-10:-4]
        self.kernels = nn.ParameterList(k.permute(3, 2, 0, 1) for k in convolutions[::2])
        self.biases = nn.ParameterList(convolutions[1::2])
        width, hidden = recurrent[0].shape[0], recurrent[1].shape[0]
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        # Keras has the gates in torch's order, transposed, and one bias.
        state: dict[str, Tensor] = {}
        for suffix, (kernel, loop, bias) in (("", recurrent[:3]), ("_reverse", recurrent[3:])):
            state[f"weight_ih_l0{suffix}"], state[f"weight_hh_l0{suffix}"] = kernel.T, loop.T
            state[f"bias_ih_l0{suffix}"] = bias
            state[f"bias_hh_l0{suffix}"] = torch.zeros_like(bias)
        self.lstm.load_state_dict(state)
        self.inner, self.inner_bias, self.outer, self.outer_bias = map(nn.Parameter, arrays[-4:])
        self(torch.zeros(2, _FFT // 2 + 1))  # raises RuntimeError where shapes do not match

    def forward(self, magnitudes: Tensor) -> Tensor:
        x = magnitudes[None, None]  # (1, C, T, F)
        for number, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            stride = _STRIDE if number % 3 == 2 else 1
            # Keras pads so that ceil(F / stride) frequencies remain, the odd one at the end.
            missing = max(0, (-(-x.shape[3] // stride) - 1) * stride + 3 - x.shape[3])
            x = F.pad(x, (missing // 2, missing - missing // 2, 1, 1))
            x = F.conv2d(x, kernel, bias, (1, stride)).relu()
        x = x[0].permute(1, 2, 0).flatten(1)  # (T, F * C)
        x = self.lstm(x[None])[0][0]
        return (x @ self.inner + self.inner_bias).relu() @ self.outer + self.outer_bias


def _read(path: Path) -> list[NDArray[Any]]:
    """The arrays of a Keras model in the order of its layers.

    Raises:
        ValueError: See `Mosnet`.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError("MOSNet needs h5py: pip install 'im2sp[evaluate]'") from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected {FILE_NAME} of lochenchou/MOSNet")
    arrays: list[NDArray[Any]] = []
    try:
        with h5py.File(path, "r") as file:
            root: Any = file.get("model_weights", file)
            for layer in root.attrs["layer_names"]:
                group = root[layer]
                arrays += [group[name][()] for name in group.attrs["weight_names"]]
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the weights of a Keras model ({error})") from None
    if len(arrays) != _NUM_ARRAYS:
        raise ValueError(
            f"{path}: {len(arrays)} arrays of weights, expected {_NUM_ARRAYS} of {FILE_NAME}"
        )
    return arrays
