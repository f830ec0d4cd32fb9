"""MOSNet in its published form, against a plain implementation in numpy."""

import numpy as np
import pytest

from im2sp.tools.engines.mos import load_predictor
from im2sp.tools.engines.mosnet import FILE_NAME, Mosnet

h5py = pytest.importorskip("h5py")

CHANNELS, HIDDEN, INNER = (2, 3, 4, 5), 6, 7


def make_arrays(seed=0):
    """Arrays by layer and name, as Keras names them."""
    rng = np.random.default_rng(seed)

    def array(*shape):
        return (0.3 * rng.standard_normal(shape)).astype(np.float32)

    layers, channels = {}, 1
    for number in range(12):
        wide, name = CHANNELS[number // 3], f"conv2d_{number}" if number else "conv2d"
        layers[name] = {"kernel:0": array(3, 3, channels, wide), "bias:0": array(wide)}
        channels = wide
    layers["reshape"] = {}
    both = layers["bidirectional"] = {}
    for way in ("forward_lstm", "backward_lstm"):
        both[f"{way}/kernel:0"] = array(4 * channels, 4 * HIDDEN)
        both[f"{way}/recurrent_kernel:0"] = array(HIDDEN, 4 * HIDDEN)
        both[f"{way}/bias:0"] = array(4 * HIDDEN)
    layers["time_distributed"] = {"kernel:0": array(2 * HIDDEN, INNER), "bias:0": array(INNER)}
    layers["frame"] = {"kernel:0": array(INNER, 1), "bias:0": array(1)}
    return layers


def save(path, layers, below=""):
    with h5py.File(path, "w") as file:
        root = file.create_group(below) if below else file
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{part}".encode() for part in arrays]
            for part, values in arrays.items():
                group[f"{name}/{part}"] = values
    return path


def convolve(x, kernel, bias, stride):
    """(T, F, C) -> (T, ceil(F / stride), C'), padded as TensorFlow's "same"."""
    num_out = -(-x.shape[1] // stride)
    missing = max(0, (num_out - 1) * stride + 3 - x.shape[1])
    x = np.pad(x, ((1, 1), (missing // 2, missing - missing // 2), (0, 0)))
    found = np.zeros((x.shape[0] - 2, num_out, kernel.shape[3]))
    for t in range(found.shape[0]):
        for f in range(num_out):
            window = x[t : t + 3, stride * f : stride * f + 3]
            found[t, f] = np.tensordot(window, kernel, 3) + bias
    return np.maximum(found, 0)


def lstm(x, kernel, recurrent, bias):
    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    h = c = np.zeros(HIDDEN)
    rows = []
    for row in x:
        i, f, g, o = np.split(row @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        rows.append(h)
    return np.array(rows)


def reference(layers, samples):
    padded = np.pad(samples.astype(np.float64), 256, mode="reflect")
    starts = range(0, len(padded) - 511, 256)
    frames = [np.hamming(512) * padded[start : start + 512] for start in starts]
    x = np.abs(np.fft.rfft(frames, axis=1))[:, :, None]
    for number, (name, arrays) in enumerate(list(layers.items())[:12]):
        assert name.startswith("conv2d")
        x = convolve(x, arrays["kernel:0"], arrays["bias:0"], 3 if number % 3 == 2 else 1)
    x, both = x.reshape(len(x), -1), list(layers["bidirectional"].values())
    x = np.concatenate([lstm(x, *both[:3]), lstm(x[::-1], *both[3:])[::-1]], 1)
    inner, frame = layers["time_distributed"], layers["frame"]
    x = np.maximum(x @ inner["kernel:0"] + inner["bias:0"], 0)
    return float((x @ frame["kernel:0"] + frame["bias:0"]).mean())


def clip(num_samples):
    return np.random.default_rng(1).normal(0, 0.1, num_samples).astype(np.float32)


def test_scores_are_those_of_the_reference(tmp_path):
    layers = make_arrays()
    save(tmp_path / FILE_NAME, layers)
    model = load_predictor(str(tmp_path), "cpu")
    for num_samples in (512, 2000):
        found = model.score(clip(num_samples))
        assert found == {"MOSNet": pytest.approx(reference(layers, clip(num_samples)), abs=1e-4)}
    short = np.pad(clip(100), (0, 412))
    assert model.score(clip(100))["MOSNet"] == pytest.approx(reference(layers, short), abs=1e-4)
    whole = Mosnet(save(tmp_path / "whole.h5", layers, "model_weights"), "cpu")
    assert whole.fingerprint == model.fingerprint
    with pytest.raises(ValueError, match="MOSNet of a clip without samples"):
        model.score(clip(0))


def test_other_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"none\.h5: no such file; expected cnn_blstm\.h5"):
        load_predictor(str(tmp_path / "none.h5"))
    path = tmp_path / "a.h5"
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"a\.h5: not the weights of a Keras model"):
        Mosnet(path)
    with h5py.File(path, "w") as file:
        file["x"] = [1]
    with pytest.raises(ValueError, match=r"a\.h5: not the weights of a Keras model"):
        Mosnet(path)
    layers = make_arrays()
    layers["frame"]["kernel:0"] = np.zeros((3, 1), np.float32)
    with pytest.raises(ValueError, match=r"a\.h5: not the shapes of a MOSNet"):
        Mosnet(save(path, layers), "cpu")
    del layers["frame"]
    with pytest.raises(ValueError, match=r"a\.h5: 32 arrays of weights, expected 34 of cnn_bl"):
        Mosnet(save(path, layers))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ValueError, match="MOSNet needs h5py: pip install"):
        Mosnet(path)
