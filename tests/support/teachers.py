"""Tiny vision models of transformers with random weights."""

from pathlib import Path

import torch


def make_teacher(folder: Path, kind: str = "vit", seed: int = 0) -> Path:
    """Save a model of images of 28 pixels and its image processor."""
    import transformers

    torch.manual_seed(seed)
    stack = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**stack, "intermediate_size": 16, "image_size": 28, "patch_size": 4}
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**vision))
    elif kind == "clip":
        text = {**stack, "intermediate_size": 16, "vocab_size": 9, "max_position_embeddings": 8}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        model = transformers.CLIPModel(config)
    else:
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        )
        model = transformers.ResNetModel(config)
    model.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    transformers.ViTImageProcessor(image_mean=half, image_std=half).save_pretrained(folder)
    return folder
