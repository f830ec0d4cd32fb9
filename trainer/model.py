"""The model: image units in, speech units or text out.

    image units ─ codebook ─ SeiT stem ─ ViT ─ projection ─┐
                                                      GIT decoder ─ next token
                                       BOS, tokens ────────┘

The encoder is SeiT's: the codebook vectors form an image of `code_width` channels, which a ViT
reads in place of pixels. The decoder is GIT's: BERT layers over the image states followed by the
text, where an image state attends to image states only, and a text token to the image and to the
text up to itself.

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

from im2sp.trainer.attention import attention, dropout
from im2sp.trainer.model_config import ModelConfig, StackConfig

ENCODER_EPS, PROJECTION_EPS, DECODER_EPS = 1e-6, 1e-5, 1e-12
# Lower bound of a column's deviation, so that an almost constant column is not amplified.
CODE_STD_FLOOR = 1e-4
INIT_STD = 0.02
Prefix = list[tuple[Tensor, Tensor]]
"""Keys and values (B, H, P, K) of the image states in each layer of the decoder."""


class Layer(nn.Module):
    """Attention and a two-layer perceptron, the parts common to encoder and decoder layers."""

    def __init__(self, config: StackConfig, eps: float) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_qkv = nn.Linear(config.width, 3 * config.width)
        self.to_out = nn.Linear(config.width, config.width)
        self.attention_norm = nn.LayerNorm(config.width, eps=eps)
        self.mlp_in = nn.Linear(config.width, config.mlp_width)
        self.mlp_out = nn.Linear(config.mlp_width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=eps)

    def split_heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, T, n * D) -> n times (B, H, T, K)."""
        width = self.to_out.in_features
        parts = x.unflatten(-1, (x.shape[-1] // width, self.heads, -1))
        return parts.permute(2, 0, 3, 1, 4).unbind()

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, T, D) -> three times (B, H, T, K)."""
        return self.split_heads(self.to_qkv(x))

    def join_heads(self, attended: Tensor) -> Tensor:
        """(B, H, T, K) -> (B, T, D), through the output Linear."""
        return self.to_out(attended.transpose(1, 2).flatten(2))

    def perceptron(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.mlp_out(F.gelu(self.mlp_in(x)))


class EncoderLayer(Layer):
    """A ViT layer as in timm (pre-norm)."""

    def __init__(self, config: StackConfig, eps: float, drop_p: float = 0.0) -> None:
        """`drop_p` is the probability that an image skips one of the two branches in training."""
        super().__init__(config, eps)
        self.drop_p = drop_p

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, D) -> (B, P, D)."""
        q, k, v = self.queries_keys_values(self.attention_norm(x))
        x = x + self._kept(self.join_heads(attention(q, k, v, None, 0.0)))
        return x + self._kept(self.perceptron(self.mlp_norm(x)))

    def _kept(self, branch: Tensor) -> Tensor:
        """A branch (B, P, D), zero for some images in training, and scaled up for the others."""
        if not (self.training and self.drop_p):
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_p
        return branch * (kept / (1 - self.drop_p)).to(branch.dtype)


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


def conv_stem(code_width: int, width: int, stride: int) -> nn.Sequential:
    """Convolutions of 3x3 and GELU, then one of 1x1: (B, code_width, R, R) to (B, width, R/s, R/s).

    The first keeps the grid, each further one halves it; channels double up to `width`. A ViT
    behind such a stem needs less data and is easier to train (Xiao et al., "Early Convolutions
    Help Transformers See Better", 2021). The paper uses batch norms; two or three layers with He
    initialisation do not need them, and so an image's states do not depend on its batch.

    Args:
        code_width: Input channels.
        width: Output channels; at least `stride`.
        stride: A power of 2.
    """
    halvings = stride.bit_length() - 1
    channels, layers = code_width, list[nn.Module]()
    for number in range(halvings + 1):
        wider = width >> (halvings - number)
        layers += [nn.Conv2d(channels, wider, 3, 2 if number else 1, padding=1), nn.GELU()]
        channels = wider
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


class ImageEncoder(nn.Module):
    """SeiT's ViT over image units, without the final norm and the classifier head."""

    def __init__(self, config: ModelConfig, codebook: Tensor) -> None:
        super().__init__()
        stack = config.encoder
        self.normalise_codebook = config.normalise_codebook
        self.standardise_codebook = config.standardise_codebook
        self.register_buffer("codebook", codebook)
        stride = config.stem_stride
        if config.conv_stem:
            self.stem = conv_stem(config.code_width, stack.width, stride)
        else:
            self.stem = nn.Conv2d(
                config.code_width, stack.width, 2 * stride, stride, padding=stride // 2
            )
        self.cls = nn.Parameter(torch.zeros(1, 1, stack.width))
        self.positions = nn.Parameter(torch.zeros(1, config.num_states, stack.width))
        # From 0 in the first layer to the full rate in the last.
        last = max(1, stack.depth - 1)
        drop_ps = [config.stochastic_depth * i / last for i in range(stack.depth)]
        self.layers = nn.ModuleList(EncoderLayer(stack, ENCODER_EPS, p) for p in drop_ps)

    def vectors(self) -> Tensor:
        """(num_codes, code_width) float32: the codebook after normalisation, if any."""
        rows = self.get_buffer("codebook")
        if self.normalise_codebook:
            rows = F.normalize(rows, dim=-1)
        if self.standardise_codebook:
            rows = (rows - rows.mean(0)) / rows.std(0).clamp(min=CODE_STD_FLOOR)
        return rows

    def forward(self, image_units: Tensor) -> Tensor:
        """(B, grid, grid) int64 -> (B, P, D)."""
        codes = F.embedding(image_units, self.vectors())
        patches = self.stem(codes.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.to(patches.dtype).expand(len(patches), -1, -1), patches), 1)
        x = x + self.positions
        for layer in self.layers:
            x = layer(x)
        return x


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
        """Logits (N, T, V) float32 of the next tokens; `owner` as in `Im2SpModel.loss`."""
        length, num_states = tokens.shape[1], prefix[0][0].shape[2]
        x = self.embed(tokens, torch.arange(length, device=tokens.device))
        # True if token t attends to key s: all of the image, and the text up to itself.
        mask = torch.ones(length, num_states + length, dtype=torch.bool, device=tokens.device)
        mask = mask.tril(num_states)
        for layer, image in zip(self.stack(), prefix, strict=True):
            q, k, v = layer.queries_keys_values(x)
            if owner is not None:
                image = (image[0].index_select(0, owner), image[1].index_select(0, owner))
            k, v = torch.cat((image[0], k), 2), torch.cat((image[1], v), 2)
            x = layer.finish(x, layer.attend(q, k, v, mask))
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V) float32."""
        return F.linear(x, self.embedding.weight, self.output_bias).float()


class Im2SpModel(nn.Module):
    """Image units to tokens; without an image, a language model of tokens.

    Args:
        config: Sizes.
        codebook: (num_codes, code_width) float32, the vectors of the image units. Copied; saved
            with the weights, not trained. Not used without an image.
    """

    def __init__(self, config: ModelConfig, codebook: Tensor) -> None:
        super().__init__()
        self.config = config
        if config.has_image:
            shape, expected = tuple(codebook.shape), (config.num_codes, config.code_width)
            if shape != expected:
                raise ValueError(f"the codebook has shape {shape}, expected {expected}")
            self.encoder = ImageEncoder(config, codebook.detach().float().clone())
            self.projection = nn.Linear(config.encoder.width, config.decoder.width)
            self.projection_norm = nn.LayerNorm(config.decoder.width, eps=PROJECTION_EPS)
        self.decoder = Decoder(config)
        self.apply(_init_weights)
        if not config.has_image:
            return
        if config.conv_stem:
            for module in self.encoder.stem.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        nn.init.trunc_normal_(self.encoder.cls, std=INIT_STD)
        nn.init.trunc_normal_(self.encoder.positions, std=INIT_STD)

    def encode(self, image_units: Tensor) -> tuple[Tensor, Tensor]:
        """States of the encoder, and projected ones: (B, grid, grid) int64 -> twice (B, P, D).

        Without an image there are none: P is 0, and only B matters.
        """
        if not self.config.has_image:
            width = self.config.decoder.width
            empty = self.decoder.embedding.weight.new_zeros(len(image_units), 0, width)
            return empty, empty
        states = self.encoder(image_units)
        return states, self.projection_norm(self.projection(states))

    def prefix(self, image_units: Tensor) -> Prefix:
        """Prefix cache of images for the decoder.

        Args:
            image_units: (B, grid, grid) int64.
        """
        return self.decoder.prefix(self.encode(image_units)[1])

    def forward(self, image_units: Tensor, tokens: Tensor) -> Tensor:
        """Logits of the next tokens, for one text per image.

        Args:
            image_units: (B, grid, grid) int64.
            tokens: (B, T) int64, starting with BOS; T at most `config.max_positions`.

        Returns:
            (B, T, V) float32.
        """
        self._check_length(tokens)
        return self.decoder(tokens, self.prefix(image_units), None)

    def loss(
        self,
        image_units: Tensor,
        tokens: Tensor,
        owner: Tensor,
        label_smoothing: float = 0.0,
        *,
        projected: Tensor | None = None,
    ) -> Tensor:
        """Mean cross entropy of the tokens after BOS; PAD is not counted.

        Loss and gradients equal those of one pass per text, but the parts that do not depend on the
        text are computed once per image. The texts of an image share the dropout masks of its
        states.

        Args:
            image_units: (B, grid, grid) int64.
            tokens: (N, T) int64: BOS, ids, EOS, PAD up to T.
            owner: (N,) int64, row of the image that each text belongs to.
            label_smoothing: Share of the target distribution that is spread over all tokens.
            projected: Projected states of `encode`, if they are known.

        Returns:
            A float32 scalar.
        """
        tokens_in, tokens_out = tokens[:, :-1], tokens[:, 1:]
        self._check_length(tokens_in)
        if projected is None:
            projected = self.encode(image_units)[1]
        logits = self.decoder(tokens_in, self.decoder.prefix(projected), owner)
        return F.cross_entropy(
            logits.flatten(0, 1),
            tokens_out.flatten(),
            ignore_index=self.config.vocabulary.pad,
            label_smoothing=label_smoothing,
        )

    def word_loss(
        self,
        image_units: Tensor,
        tokens: Tensor,
        owner: Tensor,
        *,
        projected: Tensor | None = None,
    ) -> Tensor:
        """Loss of bag-of-words pre-training: binary cross entropy, summed over the words.

        The presence of each word is predicted from the mean of the projected image states; the
        target is the share of the image's texts that contain it. Follows Joulin et al., "Learning
        Visual Features from Large Weakly Supervised Data" (2016).

        Args:
            image_units: (B, grid, grid) int64.
            tokens: (N, T) int64: BOS, ids of words, EOS, PAD up to T.
            owner: (N,) int64, row of the image that each text belongs to.
            projected: Projected states of `encode`, if they are known.

        Returns:
            A float32 scalar, the mean over images that have texts.
        """
        vocabulary = self.config.vocabulary
        if projected is None:
            projected = self.encode(image_units)[1]
        logits = self.decoder.logits(projected.mean(1))
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
