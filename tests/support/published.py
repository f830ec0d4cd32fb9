"""Published formats of models, converted from small im2sp models."""

import torch

from im2sp.tools.engines.git_reference import git_state_dict
from im2sp.trainer.published import TIMM_NAMES, TIMM_PARAMETERS


def timm_state_dict(model):
    """The encoder under timm's names, with the norm and head that SeiT's files contain."""
    ours = model.encoder.state_dict()
    width = model.config.encoder.width
    found = {theirs: ours[name] for name, theirs in TIMM_PARAMETERS.items()}
    for layer in range(model.config.encoder.depth):
        for name, theirs in TIMM_NAMES.items():
            for kind in ("weight", "bias"):
                found[f"{theirs}.{kind}".format(layer)] = ours[f"{name}.{kind}".format(layer)]
    found |= {f"norm.{kind}": torch.ones(width) for kind in ("weight", "bias")}
    return found | {"head.weight": torch.ones(10, width), "head.bias": torch.ones(10)}


def original_state_dict(model):
    """The paper's unit model: an image tokenizer, GIT, and its SeiT encoder."""
    git = git_state_dict(model)
    encoder = {f"git.image_encoder.vision_model.{k}": v for k, v in timm_state_dict(model).items()}
    found = {f"model.{name}": tensor for name, tensor in (git | encoder).items()}
    return found | {"tokenizer.encoder.to_patch_embedding.1.weight": torch.ones(4, 3, 8, 8)}
