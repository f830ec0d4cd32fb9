"""Small random HuBERTs in every published format, and k-means centroids as written by joblib."""

import argparse
import io
import json
import pickle
import re
import sys
import types

import numpy as np
import torch
from safetensors.torch import save_file

LARGE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
"""Settings of the form of hubert-large."""
CONVOLUTIONS = {
    "conv_dim": [16] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}
TO_FAIRSEQ = [
    (r"feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"feature_projection\.layer_norm\.", r"layer_norm."),
    (r"feature_projection\.projection\.", r"post_extract_proj."),
    (r"encoder\.pos_conv_embed\.conv\.", r"encoder.pos_conv.0."),
    (r"(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
    (r"(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"(encoder\.layers\.\d+)\.feed_forward\.intermediate_dense\.", r"\1.fc1."),
    (r"(encoder\.layers\.\d+)\.feed_forward\.output_dense\.", r"\1.fc2."),
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
]


def make_hubert(seed=0, **settings):
    """transformers' own HubertModel: width 32, 8 layers, 4 heads, random in every tensor."""
    from transformers import HubertConfig, HubertModel

    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    torch.manual_seed(seed)
    model = HubertModel(HubertConfig(**{**CONVOLUTIONS, **sizes, **settings})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.05 * torch.randn(parameter.shape))
            elif parameter.ndim == 2:  # weak attention; otherwise all frames are alike
                parameter.normal_(0, 0.05 if "attention" in name else 0.3)
    return model


def features_of(model, samples, layer=6):
    """(T, D) features of one clip from the whole model, unmodified."""
    with torch.no_grad():
        states = model(torch.as_tensor(samples)[None], output_hidden_states=True).hidden_states
    return states[layer][0]


def units_of(model, centroids, samples, layer=6):
    """Nearest centroids of the whole model's features, in float64, clips cut as in the original."""
    found = []
    for start in range(0, len(samples), 1_600_000):
        chunk = samples[start : start + 1_600_000]
        features = features_of(model, chunk, layer).double()
        found.append(torch.cdist(features, centroids.double()).argmin(-1))
    return torch.cat(found).numpy()


def make_centroids(model, num=20, layer=6, seed=1):
    """Centroids taken from a clip's features, so that many units occur."""
    features = features_of(model, clip(40_000, seed), layer)
    return features[torch.linspace(0, len(features) - 1, num).long()].clone()


def clip(num_samples, seed=0, loudness=0.1):
    """Noise with varying spectrum and loudness, (S,) float32."""
    random = np.random.default_rng(seed)
    noise = random.normal(size=num_samples)
    times = np.arange(num_samples) / 16_000
    tones = np.sin(2 * np.pi * times * (200 + 90 * np.sin(times * 9 + seed)))
    wave = noise * np.abs(np.sin(times * 7)) + 2 * tones * np.abs(np.cos(times * 5))
    return (loudness * wave).astype(np.float32)


def save_folder(model, folder, *, form="safetensors", old_names=False, prefix=""):
    """A model folder in the layout of transformers' hub repositories."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + name: value.contiguous() for name, value in model.state_dict().items()}
    if old_names:
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            tensors = {
                name.replace(f"parametrizations.weight.{new}", old): value
                for name, value in tensors.items()
            }
    (folder / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    if form == "safetensors":
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def fairseq_tensors(model):
    """The model's tensors under fairseq's names, including those not needed for features."""
    is_layer = model.config.feat_extract_norm == "layer"
    norm = (r"conv_layers\.(\d+)\.layer_norm\.", r"conv_layers.\1.2." + ("1." if is_layer else ""))
    renamed = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in [*TO_FAIRSEQ, norm]:
            name = re.sub(pattern, replacement, name)
        renamed["mask_emb" if name == "masked_spec_embed" else name] = tensor
    renamed["label_embs_concat"] = torch.randn(504, 8)
    renamed["final_proj.weight"] = torch.randn(8, 32)
    return renamed


class _Stand:
    """Stand-in for a class of a library that is not installed, for pickling."""

    def __init__(self, **state):
        self.__dict__.update(state)


_REPLACED = []


def stand_in(module, name, **state):
    """An object whose pickle names `module.name` and has that state."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path not in sys.modules:
            sys.modules[path] = types.ModuleType(path)
            sys.modules[path].__dict__["made_up"] = True
    held = sys.modules[module].__dict__
    if not issubclass(held.get(name, object), _Stand):  # absent, or of the library itself
        _REPLACED.append((held, name, held.get(name)))
        held[name] = type(name, (_Stand,), {"__module__": module})
    return held[name](**state)


def forget_stand_ins():
    """Remove the stand-in classes and modules."""
    while _REPLACED:
        held, name, original = _REPLACED.pop()
        held.pop(name)
        if original is not None:
            held[name] = original
    for name, module in list(sys.modules.items()):
        if getattr(module, "__dict__", {}).get("made_up"):
            del sys.modules[name]


def save_fairseq(model, path, records="cfg", **more):
    """`hubert_base_ls960.pt`: settings as plain dicts, as omegaconf's nodes, or as `args`.

    `more` are further settings, of the model and of the task.
    """
    config = model.config
    settings = {
        "encoder_attention_heads": config.num_attention_heads,
        "layer_norm_first": config.do_stable_layer_norm,
        "activation_fn": "gelu",
        **more,
    }
    content = {"args": None, "cfg": None, "model": fairseq_tensors(model)}
    if records == "args":
        content["args"] = argparse.Namespace(**settings)
    elif records == "cfg":
        content["cfg"] = {"model": settings, "task": {"normalize": False} | more}
    else:
        nodes = {
            key: stand_in("omegaconf.nodes", "AnyNode", _val=value, _parent=None)
            for key, value in settings.items()
        }
        inner = stand_in("omegaconf.dictconfig", "DictConfig", _content=nodes)
        content["cfg"] = stand_in("omegaconf.dictconfig", "DictConfig", _content={"model": inner})
    torch.save(content, path)
    forget_stand_ins()
    return path


class _JoblibPickler(pickle._Pickler):
    """Writer of arrays in joblib's format, without joblib."""

    def __init__(self, file, protocol, alignment):
        super().__init__(file, protocol)
        self.out, self.alignment = file, alignment

    def save(self, obj, save_persistent_id=True):
        if type(obj) is not np.ndarray:
            return super().save(obj, save_persistent_id)
        is_fortran = obj.flags.f_contiguous and not obj.flags.c_contiguous
        state = {
            "subclass": np.ndarray,
            "shape": obj.shape,
            "order": "F" if is_fortran else "C",
            "dtype": obj.dtype,
            "allow_mmap": True,
        }
        if self.alignment is not None:
            state["numpy_array_alignment_bytes"] = self.alignment
        super().save(stand_in("joblib.numpy_pickle", "NumpyArrayWrapper", **state))
        if self.proto >= 4:
            self.framer.commit_frame(force=True)
        if self.alignment is not None:
            padding = self.alignment - (self.out.tell() + 1) % self.alignment
            self.out.write(bytes([padding]) + b"\xff" * padding)
        self.out.write(obj.tobytes("F" if is_fortran else "C"))
        return None


def joblib_bytes(content, protocol=4, alignment=16):
    """Bytes as written by `joblib.dump`; `alignment` None is joblib before 1.2."""
    out = io.BytesIO()
    _JoblibPickler(out, protocol, alignment).dump(content)
    forget_stand_ins()
    return out.getvalue()


def km_bytes(centroids, protocol=4, alignment=16, **state):
    """Bytes of a `km.bin` with a fitted MiniBatchKMeans."""
    centroids = np.asarray(centroids)
    fitted = {
        "n_clusters": len(centroids),
        "init": "k-means++",
        "cluster_centers_": centroids,
        "labels_": np.arange(7, dtype=np.int32),
        "inertia_": np.float64(2.5),
        "random_state_": np.random.RandomState(np.random.MT19937(3)),
        **state,
    }
    model = stand_in("sklearn.cluster._kmeans", "MiniBatchKMeans", **fitted)
    return joblib_bytes(model, protocol, alignment)
