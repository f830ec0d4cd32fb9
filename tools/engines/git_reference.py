"""Reference model of tests and benchmarks: GIT of transformers with our image encoder.

Our encoder replaces GIT's image encoder, which reads pixels, as in the paper's code. Everything
after it (projection, decoder, loss, generation) is code of transformers with the weights of an
`Im2SpModel`.
"""

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GitConfig, GitForCausalLM, GitModel

from im2sp.trainer.model import DECODER_EPS, PROJECTION_EPS, Im2SpModel
from im2sp.trainer.published import GIT_NAMES, GIT_PARAMETERS, GIT_QKV, PROJECTION_NAMES


class UnitsEncoder(nn.Module):
    """Our encoder in place of GIT's; takes image units as `pixel_values` (B, 1, 28, 28)."""

    def __init__(self, model: Im2SpModel) -> None:
        super().__init__()
        self.vision_model = model.encoder

    def forward(self, pixel_values: Tensor, **_options: object) -> SimpleNamespace:
        """Return the states under the name that GIT expects."""
        return SimpleNamespace(last_hidden_state=self.vision_model(pixel_values[:, 0]))


def git_state_dict(model: Im2SpModel) -> dict[str, Tensor]:
    """Decoder and projection under transformers' names."""
    ours = model.state_dict()
    found = {theirs: ours[f"decoder.{name}"] for name, theirs in GIT_PARAMETERS.items()}
    found["output.weight"] = ours["decoder.embedding.weight"]
    for kind in ("weight", "bias"):
        for name, theirs in PROJECTION_NAMES.items():
            found[f"{theirs}.{kind}"] = ours[f"{name}.{kind}"]
        for layer in range(model.config.decoder.depth):
            for name, theirs in GIT_NAMES.items():
                found[f"{theirs.format(layer)}.{kind}"] = ours[
                    f"decoder.{name.format(layer)}.{kind}"
                ]
            qkv = ours[f"decoder.layers.{layer}.to_qkv.{kind}"].chunk(3)
            for theirs, part in zip(GIT_QKV, qkv, strict=True):
                found[f"{theirs.format(layer)}.{kind}"] = part
    return found


def git_config(model: Im2SpModel) -> GitConfig:
    """GIT configuration of the model's sizes."""
    config, vocabulary = model.config, model.config.vocabulary
    return GitConfig(
        vision_config={
            "hidden_size": config.encoder.width,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": config.encoder.heads,
            "image_size": config.shape[0] // 2,  # one patch a state, and CLS
            "patch_size": 1,
            "layer_norm_eps": PROJECTION_EPS,
        },
        vocab_size=vocabulary.size,
        hidden_size=config.decoder.width,
        num_hidden_layers=config.decoder.depth,
        num_attention_heads=config.decoder.heads,
        intermediate_size=config.decoder.mlp_width,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        max_position_embeddings=config.max_positions,
        layer_norm_eps=DECODER_EPS,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.bos,
        eos_token_id=vocabulary.eos,
        tie_word_embeddings=True,
    )


def git_from(model: Im2SpModel) -> GitForCausalLM:
    """GIT of transformers with a model's weights, on its device; shares the model's encoder."""
    reference = GitForCausalLM(git_config(model))
    unused = reference.load_state_dict(git_state_dict(model), strict=False).unexpected_keys
    assert not unused, unused
    reference.git.image_encoder = UnitsEncoder(model)  # pyright: ignore[reportAttributeAccessIssue]
    if "position_ids + past_key_values_length" in inspect.getsource(GitModel.forward):
        reference.git.embeddings.register_forward_pre_hook(_count_text_only, with_kwargs=True)
    torch.nn.Module.to(reference, next(model.parameters()).device)
    return reference.train(model.training)


def _count_text_only(
    _module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Undo that transformers 5.17 adds the length of the cache to positions of the text.

    Its positions of generated tokens then lie beyond the table. Later versions do not add it.
    """
    past = options["past_key_values_length"]
    if past and options["input_ids"].shape[1] == 1:
        options["position_ids"] = options["position_ids"] - past
    return args, options


def git_loss(reference: GitForCausalLM, images: Tensor, tokens: Tensor, pad: int) -> Tensor:
    """Mean cross entropy of texts (N, T) with an image each; `images` as for `git_generate`."""
    labels = tokens.masked_fill(tokens == pad, -100)
    output = reference(
        input_ids=tokens,
        attention_mask=(tokens != pad).long(),
        pixel_values=_pixel_values(images),
        labels=labels,
    )
    return output.loss


@torch.no_grad()
def git_generate(
    reference: GitForCausalLM, images: Tensor, num_beams: int, max_tokens: int
) -> list[list[int]]:
    """Token rows as transformers generates them, BOS and padding included.

    Args:
        reference: The GIT.
        images: Image units (N, grid, grid); for a GIT with its own encoder, pixels (N, 3, S, S).
        num_beams: 1 for greedy decoding.
        max_tokens: Maximum number of generated tokens.
    """
    config = reference.config
    settings = GenerationConfig(
        num_beams=num_beams,
        max_length=1 + max_tokens,
        early_stopping=num_beams > 1,
        do_sample=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    run: Any = reference.generate  # pyright: ignore[reportAttributeAccessIssue] - its mixin's types
    return run(pixel_values=_pixel_values(images), generation_config=settings).tolist()


def _pixel_values(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images[:, None]
