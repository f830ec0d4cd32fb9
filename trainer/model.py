"""The model: image units in, speech units or text out.

    image units ─ codebook ─ SeiT stem ─ ViT ─ projection ─┐
                                                      GIT decoder ─ next token
                                       BOS, tokens ────────┘

The encoder is SeiT's (see `encoder`). With `--input pixels` the states are the features of a frozen
image encoder of others, which is not part of the model. The decoder is GIT's: BERT layers over the
image states followed by the text, where an image state attends to image states only, and a text
token to the image and to the text up to itself.

So the states of the image inside the decoder do not depend on the text, and `Prefix`, a prefix
cache with the keys and values of every layer, is computed once per image: for all of its captions
in training, for all beams and steps in generation. A text token then attends to
[keys of its image ; keys of its text].

Legend: `B` images, `N` texts, `P` image states (197 at SeiT's stride), `T` tokens of a text,
`D` width, `H` heads, `K` head width, `V` vocabulary.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from im2sp.trainer.attention import Layer, attention, dropout
from im2sp.trainer.encoder import ImageEncoder
from im2sp.trainer.model_config import ModelConfig

PROJECTION_EPS, DECODER_EPS = 1e-5, 1e-12
INIT_STD = 0.02
MAX_LOGITS = 1 << 27
"""Most logits that the loss computes at a time: 0.5 GiB of float32, several times in memory."""
Prefix = list[tuple[Tensor, Tensor]]
"""Keys and values (B, H, P, K) of the image states in each layer of the decoder."""


class DecoderLayer(Layer):
    """A BERT layer (post-norm)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.decoder, DECODER_EPS)
        self.dropout_p = config.dropout
        self.attention_dropout_p = config.attention_dropout

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend with queries (B, H, T, K) to keys and values (B, H, S, K), `mask` as above."""
        return attention(q, k, v, mask, self.attention_dropout_p if self.training else 0.0)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output of the layer from its input (B, T, D) and the attention output (B, H, T, K)."""
        p = self.dropout_p if self.training else 0.0
        x = self.attention_norm(x + dropout(self.join_heads(attended), p))
        return self.mlp_norm(x + dropout(self.perceptron(x), p))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> twice (B, H, T, K): no queries, for states whose output is not needed."""
        width = x.shape[-1]
        both = F.linear(x, self.to_qkv.weight[width:], self.to_qkv.bias[width:])
        k, v = self.split_heads(both)
        return k, v


class Decoder(nn.Module):
    """GIT's text decoder; the output Linear shares its weight with the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, vocabulary = config.decoder.width, config.vocabulary
        self.embedding = nn.Embedding(vocabulary.size, width)
        self.positions = nn.Embedding(config.max_positions, width)
        self.norm = nn.LayerNorm(width, eps=DECODER_EPS)
        self.dropout_p = config.dropout
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder.depth))
        self.output_bias = nn.Parameter(torch.zeros(vocabulary.size))

    def stack(self) -> list[DecoderLayer]:
        """The layers in order."""
        return cast("list[DecoderLayer]", list(self.layers))

    def prefix(self, x: Tensor) -> Prefix:
        """Projected image states (B, P, D) -> their keys and values in every layer."""
        prefix: Prefix = []
        *layers, last = self.stack()
        for layer in layers:
            q, k, v = layer.queries_keys_values(x)
            prefix.append((k, v))
            x = layer.finish(x, layer.attend(q, k, v))
        return [*prefix, last.keys_values(x)]

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens (N, T) at positions (T,) -> (N, T, D)."""
        x = self.norm(self.embedding(tokens) + self.positions(positions))
        return dropout(x, self.dropout_p if self.training else 0.0)

    def forward(self, tokens: Tensor, prefix: Prefix, owner: Tensor | None) -> Tensor:
        """States (N, T, D) of the tokens, for `logits`; `owner` as in `Im2SpModel.loss`."""
        length, num_states = tokens.shape[1], prefix[0][0].shape[2]
        x = self.embed(tokens, torch.arange(length, device=tokens.device))
        # True if token t attends to key s: all of the image, and the text up to itself.
        mask = torch.ones(length, num_states + length, dtype=torch.bool, device=tokens.device)
        mask = mask.tril(num_states)
        for layer, (image_k, image_v) in zip(self.stack(), prefix, strict=True):
            q, k, v = layer.queries_keys_values(x)
            k, v = _after_image(image_k, k, owner), _after_image(image_v, v, owner)
            x = layer.finish(x, layer.attend(q, k, v, mask))
        return x

    def logits(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32."""
        return F.linear(x, self.embedding.weight, self.output_bias).float()

    def losses(self, x: Tensor, targets: Tensor, pad: int, label_smoothing: float) -> Tensor:
        """Sum of the cross entropies of the next tokens, a float32 scalar.

        More than `MAX_LOGITS` logits are computed in parts, and again in the backward pass, so that
        only those of one part are in memory.

        Args:
            x: (M, D) states.
            targets: (M,) int64 next tokens.
            pad: Target that is not counted.
            label_smoothing: Share of the target distribution that is spread over all tokens.
        """

        def part(x: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(
                self.logits(x),
                targets,
                ignore_index=pad,
                reduction="sum",
                label_smoothing=label_smoothing,
            )

        rows = max(1, MAX_LOGITS // len(self.output_bias))
        if len(x) <= rows:
            return part(x, targets)
        parts = zip(x.split(rows), targets.split(rows), strict=True)
        sums = [
            checkpoint(part, *both, use_reentrant=False, preserve_rng_state=False) for both in parts
        ]
        return torch.stack(sums).sum()


def _after_image(image: Tensor, text: Tensor, owner: Tensor | None) -> Tensor:
    """(B, H, P, K) of images and (N, H, T, K) of texts -> (N, H, P + T, K).

    Without `owner` the image's part is copied once, and its gradient is a sum instead of an
    `index_add_`, which on a GPU is slow.
    """
    if owner is not None:
        return torch.cat((image.index_select(0, owner), text), 2)
    of_image = text.unflatten(0, (len(image), len(text) // len(image)))
    repeated = image[:, None].expand(-1, of_image.shape[1], -1, -1, -1)
    return torch.cat((repeated, of_image), 3).flatten(0, 1)


class Im2SpModel(nn.Module):
    """Image units, or features of pixels, to tokens; without an image, a language model of tokens.

    Args:
        config: Sizes.
        codebook: (num_codes, code_width) float32, the vectors of the image units. Copied; saved
            with the weights, not trained. Not used without image units, or if vectors are learned.
    """

    def __init__(self, config: ModelConfig, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        if config.has_image:
            if config.has_units:
                self.encoder = ImageEncoder(config, codebook)
            self.projection = nn.Linear(config.states_width, config.decoder.width)
            self.projection_norm = nn.LayerNorm(config.decoder.width, eps=PROJECTION_EPS)
        self.decoder = Decoder(config)
        self.apply(_init_weights)
        if not config.has_units:
            return
        if config.conv_stem:
            for module in self.encoder.stem.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        nn.init.trunc_normal_(self.encoder.cls, std=INIT_STD)
        nn.init.trunc_normal_(self.encoder.positions, std=INIT_STD)
        if config.learned_codes:
            self.encoder.embedding.reset()

    def encode(self, image_units: Tensor) -> tuple[Tensor, Tensor]:
        """States of the encoder, and projected ones: (B, *shape) int64 -> twice (B, P, D).

        With `features` the input is (B, P, C) floats, the states themselves. Without an image there
        are none: P is 0, and only B matters.
        """
        if not self.config.has_image:
            width = self.config.decoder.width
            empty = self.decoder.embedding.weight.new_zeros(len(image_units), 0, width)
            return empty, empty
        if self.config.has_units:
            states = self.encoder(image_units)
        else:
            states = image_units.to(self.projection.weight.dtype)
        return states, self.projection_norm(self.projection(states))

    def prefix(self, image_units: Tensor) -> Prefix:
        """Prefix cache of images for the decoder.

        Args:
            image_units: (B, *shape) int64.
        """
        return self.decoder.prefix(self.encode(image_units)[1])

    def forward(self, image_units: Tensor, tokens: Tensor) -> Tensor:
        """Logits of the next tokens, for one text per image.

        Args:
            image_units: (B, *shape) int64.
            tokens: (B, T) int64, starting with BOS; T at most `config.max_positions`.

        Returns:
            (B, T, V) float32.
        """
        self._check_length(tokens)
        return self.decoder.logits(self.decoder(tokens, self.prefix(image_units), None))

    def loss(
        self,
        image_units: Tensor,
        tokens: Tensor,
        owner: Tensor | None,
        label_smoothing: float = 0.0,
        *,
        projected: Tensor | None = None,
    ) -> Tensor:
        """Mean cross entropy of the tokens after BOS; PAD is not counted.

        Loss and gradients equal those of one pass per text, but the parts that do not depend on the
        text are computed once per image. The texts of an image share the dropout masks of its
        states.

        Args:
            image_units: (B, *shape) int64.
            tokens: (N, T) int64: BOS, ids, EOS, PAD up to T.
            owner: (N,) int64, row of the image that each text belongs to. None if all images have
                as many texts, and texts are in the order of the images.
            label_smoothing: Share of the target distribution that is spread over all tokens.
            projected: Projected states of `encode`, if they are known.

        Returns:
            A float32 scalar.
        """
        tokens_in, tokens_out = tokens[:, :-1], tokens[:, 1:]
        self._check_length(tokens_in)
        if projected is None:
            projected = self.encode(image_units)[1]
        states = self.decoder(tokens_in, self.decoder.prefix(projected), owner).flatten(0, 1)
        targets, pad = tokens_out.flatten(), self.config.vocabulary.pad
        total = self.decoder.losses(states, targets, pad, label_smoothing)
        return total / (targets != pad).sum()

    def word_loss(
        self,
        image_units: Tensor,
        tokens: Tensor,
        owner: Tensor | None,
        *,
        projected: Tensor | None = None,
    ) -> Tensor:
        """Loss of bag-of-words pre-training: binary cross entropy, summed over the words.

        The presence of each word is predicted from the mean of the projected image states; the
        target is the share of the image's texts that contain it. Follows Joulin et al., "Learning
        Visual Features from Large Weakly Supervised Data" (2016).

        Args:
            image_units: (B, *shape) int64.
            tokens: (N, T) int64: BOS, ids of words, EOS, PAD up to T.
            owner: As for `loss`.
            projected: Projected states of `encode`, if they are known.

        Returns:
            A float32 scalar, the mean over images that have texts.
        """
        vocabulary = self.config.vocabulary
        if projected is None:
            projected = self.encode(image_units)[1]
        logits = self.decoder.logits(projected.mean(1))
        if owner is None:
            rows = torch.arange(len(logits), device=tokens.device)
            owner = rows.repeat_interleave(len(tokens) // len(logits))
        held = torch.zeros_like(logits).index_put_(
            (owner[:, None].expand_as(tokens), tokens), logits.new_ones(()), accumulate=True
        )
        num_texts = held[:, vocabulary.eos, None]
        words = vocabulary.place(torch.arange(vocabulary.num_ids, device=tokens.device))
        losses = F.binary_cross_entropy_with_logits(
            logits[:, words], held[:, words] / num_texts.clamp(min=1), reduction="none"
        )
        has_texts = num_texts > 0
        return (losses * has_texts).sum() / has_texts.sum()

    def _check_length(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.config.max_positions:
            raise ValueError(
                f"a text of {tokens.shape[1]} tokens, expected at most"
                f" {self.config.max_positions}; omit longer texts"
            )


def _init_weights(module: nn.Module) -> None:
    """Initialise like BERT and timm: small normal weights, zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
