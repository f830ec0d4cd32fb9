"""Tiny vision models of transformers with random weights."""

from pathlib import Path

import torch


def make_teacher(folder: Path, kind: str = "vit", seed: int = 0, **decoder: int) -> Path:
    """Save a model of images of 28 pixels and its image processor.

    Args:
        folder: The folder.
        kind: vit, classifier, clip, git or resnet.
        seed: Random seed.
        decoder: Settings of GIT's decoder.
    """
    import transformers

    torch.manual_seed(seed)
    stack = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**stack, "intermediate_size": 16, "image_size": 28, "patch_size": 4}
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**vision))
    elif kind == "classifier":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**vision))
    elif kind == "git":
        sizes = {**stack, "intermediate_size": 16, "vocab_size": 110, **decoder}
        config = transformers.GitConfig(vision_config=vision, tie_word_embeddings=True, **sizes)
        model = transformers.GitForCausalLM(config)
    elif kind == "clip":
        text = {**stack, "intermediate_size": 16, "vocab_size": 9, "max_position_embeddings": 8}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        model = transformers.CLIPModel(config)
    else:
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        )
        model = transformers.ResNetModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so large that outputs depend on the inputs
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    kinds = {"clip": transformers.CLIPImageProcessor, "git": transformers.CLIPImageProcessor}
    processor = kinds.get(kind, transformers.ViTImageProcessor)
    processor(image_mean=half, image_std=half).save_pretrained(folder)
    return folder
