"""Generation of units or text pieces for images: greedy, beam search, sampling.

The keys and values of an image are computed once and shared by its beams. Those of tokens are never
copied when beams are reordered: each step writes them into new slots of the cache,

    [image, P slots | step 0: beam 0, beam 1, ... | step 1: beam 0, beam 1, ... | ...]

and a mask marks the slots that belong to a beam's history. Only the mask is reordered.

Legend: `B` images, `R` beams (1 without beam search), `P` image states, `S` slots, `V` vocabulary,
`D` width, `H` heads, `K` head width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from im2sp.trainer.attention import attention
from im2sp.trainer.model import Decoder, Im2SpModel, Prefix
from im2sp.trainer.packed import packed_linears

NEVER = -1e9


class DecoderCache:
    """The decoder with a key/value cache of fixed size; takes one token per beam at a time."""

    def __init__(self, decoder: Decoder, prefix: Prefix, num_beams: int, max_steps: int) -> None:
        self.decoder, self.num_beams, self.step = decoder, num_beams, 0
        keys, _ = prefix[0]
        self.num_images, heads, self.num_states, head_width = keys.shape
        num_slots = self.num_states + max_steps * num_beams
        self.cache: list[tuple[Tensor, Tensor]] = []
        for parts in prefix:
            kept = [part.new_empty(self.num_images, heads, num_slots, head_width) for part in parts]
            for slots, part in zip(kept, parts, strict=True):
                slots[:, :, : self.num_states] = part
            self.cache.append((kept[0], kept[1]))
        # True if the slot's token belongs to the beam's history.
        self.sees = torch.zeros(
            (self.num_images, num_beams, num_slots), dtype=torch.bool, device=keys.device
        )
        self.sees[:, :, : self.num_states] = True
        self.own_slot = torch.eye(num_beams, dtype=torch.bool, device=keys.device)

    def __call__(self, tokens: Tensor) -> Tensor:
        """The newest tokens (B, R) -> logits (B, R, V) of the next ones."""
        start = self.num_states + self.step * self.num_beams
        end = start + self.num_beams
        mask = None
        if self.num_beams > 1:
            self.sees[:, :, start:end] = self.own_slot
            mask = self.sees[:, None, :, :end]  # (B, 1, R, S)
        position = torch.full((1,), self.step, device=tokens.device)
        x = self.decoder.embed(tokens, position)
        for layer, (keys, values) in zip(self.decoder.stack(), self.cache, strict=True):
            q, k, v = layer.queries_keys_values(x)  # (B, H, R, K)
            keys[:, :, start:end], values[:, :, start:end] = k, v
            attended = attention(q, keys[:, :, :end], values[:, :, :end], mask, 0.0)
            x = layer.finish(x, attended)
        self.step += 1
        return self.decoder.logits(x)

    def reorder(self, parents: Tensor) -> None:
        """Give beam r the history of beam `parents[:, r]`; (B, R) int64."""
        end = self.num_states + self.step * self.num_beams
        seen = self.sees[:, :, :end]
        seen.copy_(_pick(seen, parents))


def _pick(values: Tensor, rows: Tensor) -> Tensor:
    """(B, R, ...) and (B, n) -> (B, n, ...)."""
    return torch.take_along_dim(values, rows.view(*rows.shape, *[1] * (values.ndim - 2)), 1)


def generate(
    model: Im2SpModel,
    image_units: Tensor,
    num_beams: int = 1,
    max_tokens: int = 511,
    *,
    length_penalty: float = 1.0,
    early_stopping: bool = True,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Generate text or speech units for images.

    Greedy by default. Greedy and beam search results do not depend on the rest of the batch. Beam
    search follows transformers: the score of a hypothesis is its log probability divided by its
    length to the power of `length_penalty`. Sampling uses one random generator for the whole batch,
    so its results depend on the position in the batch.

    Args:
        model: The model; run in eval mode, its own mode is restored.
        image_units: (B, *shape) int64 units of images, on the model's device.
        num_beams: 1 for greedy or sampling.
        max_tokens: Maximum number of generated tokens; EOS counts, BOS does not.
        length_penalty: Above 0 favours long hypotheses, as scores are negative.
        early_stopping: If true, an image is done with `num_beams` finished hypotheses; otherwise
            when no beam can become better than the worst of them.
        temperature: Divisor of the logits for sampling; None disables sampling.
        top_k: Sample from the `top_k` most likely tokens only.
        top_p: Sample from the smallest set of most likely tokens with this total probability.
        seed: Random seed of sampling.

    Returns:
        The ids of each image, without special tokens.
    """
    _check(model, num_beams, max_tokens, temperature, top_k, top_p)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), packed_linears(model):
            cache = DecoderCache(model.decoder, model.prefix(image_units), num_beams, max_tokens)
            vocabulary = model.config.vocabulary
            bos = torch.full((len(image_units), num_beams), vocabulary.bos)
            bos = bos.to(image_units.device)
            if num_beams > 1:
                search = BeamSearch(bos, vocabulary.eos, vocabulary.pad, max_tokens)
                search.length_penalty, search.early_stopping = length_penalty, early_stopping
                tokens = search.run(cache)
            else:
                choose = _chooser(temperature, top_k, top_p, seed, image_units.device)
                tokens = _one_by_one(cache, bos, vocabulary.eos, vocabulary.pad, max_tokens, choose)
    finally:
        model.train(was_training)
    return [vocabulary.decode([vocabulary.bos, *row]) for row in tokens.tolist()]


def _check(
    model: Im2SpModel,
    num_beams: int,
    max_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if model.config.vocabulary.kind == "words":
        raise ValueError(
            "the model predicts a bag of words and cannot generate captions; train one with"
            " --target speech or text and --init-from this model"
        )
    if not model.config.has_image:
        raise ValueError(
            "the model is a language model without images and cannot describe any; give a"
            " captioner, or this model as --speech-lm of im2sp-evaluate"
        )
    limit = model.config.max_positions
    if not 1 <= max_tokens <= limit:
        raise ValueError(
            f"max_tokens is {max_tokens}, expected 1 to {limit}, the model's positions"
        )
    if num_beams < 1 or 2 * num_beams > num_beams * model.config.vocabulary.size:
        raise ValueError(f"num_beams is {num_beams}, expected at least 1")
    if temperature is None and (top_k is not None or top_p is not None):
        raise ValueError("top_k and top_p apply to sampling only; also give a temperature, as 1.0")
    if temperature is not None and num_beams > 1:
        raise ValueError(f"a temperature and {num_beams} beams; expected only one of the two")
    if temperature is not None and temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected above 0; omit it for greedy")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected (0, 1]")


def _one_by_one(
    cache: DecoderCache,
    tokens: Tensor,
    eos: int,
    pad: int,
    max_tokens: int,
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """(B, 1) BOS -> (B, max_tokens) generated tokens, PAD after EOS."""
    chosen = tokens.new_full((len(tokens), max_tokens), pad)
    is_done = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
    for step in range(max_tokens):
        following = choose(cache(tokens)[:, 0]).masked_fill(is_done, pad)
        chosen[:, step] = following
        is_done |= following == eos
        if is_done.all():
            break
        tokens = following[:, None]
    return chosen


def _chooser(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    device: torch.device,
) -> Callable[[Tensor], Tensor]:
    """Return the function that picks tokens: (B, V) logits -> (B,) tokens."""
    if temperature is None:
        return lambda logits: logits.argmax(-1)
    generator = torch.Generator(device).manual_seed(seed)

    def draw(logits: Tensor) -> Tensor:
        logits = kept_logits(logits / temperature, top_k, top_p)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]

    return draw


def kept_logits(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits (B, V) with excluded tokens at minus infinity; the most likely one always stays."""
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        shares = ordered.softmax(-1)
        is_beyond = shares.cumsum(-1) - shares >= top_p  # the more likely tokens reach top_p
        logits = logits.masked_fill(is_beyond.gather(1, order.argsort()), float("-inf"))
    return logits


class BeamSearch:
    """Beam search, equivalent to that of transformers.

    `running` are the unfinished beams, scored by their summed log probabilities; `finished` are
    the best hypotheses so far, scored with length normalisation. Empty entries score `NEVER`.
    """

    length_penalty = 1.0
    early_stopping = True

    def __init__(self, bos: Tensor, eos: int, pad: int, max_tokens: int) -> None:
        self.bos, self.eos, self.max_tokens = bos, eos, max_tokens
        self.num_beams = bos.shape[1]
        self.running = bos.new_full((*bos.shape, max_tokens), pad)  # (B, R, T)
        self.running_scores = torch.full(bos.shape, NEVER, device=bos.device)
        self.running_scores[:, 0] = 0  # all beams start equal; one is enough
        self.finished = self.running.clone()
        self.finished_scores = torch.full_like(self.running_scores, NEVER)
        self.is_finished = torch.zeros_like(bos, dtype=torch.bool)
        self.can_improve = torch.ones_like(self.is_finished[:, :1])

    def run(self, cache: DecoderCache) -> Tensor:
        """The best hypothesis of each image, (B, max_tokens), PAD after EOS."""
        tokens = self.bos
        for step in range(self.max_tokens):
            log_probs = cache(tokens).log_softmax(-1) + self.running_scores[:, :, None]
            scores, places = log_probs.flatten(1).topk(2 * self.num_beams)
            beams = places // log_probs.shape[-1]
            candidates = _pick(self.running, beams)  # (B, 2R, T)
            candidates[:, :, step] = places % log_probs.shape[-1]
            is_end = candidates[:, :, step] == self.eos
            if step == self.max_tokens - 1:
                is_end = torch.ones_like(is_end)
            parents = self._continue(candidates, scores, is_end, beams)
            self._finish(candidates, scores, is_end, step + 1)
            if self._is_over(step + 1):
                break
            cache.reorder(parents)
            tokens = self.running[:, :, step]
        return self.finished[:, 0]

    def _continue(
        self, candidates: Tensor, scores: Tensor, is_end: Tensor, beams: Tensor
    ) -> Tensor:
        """Keep the best unfinished candidates; return the beams that they extend."""
        open_scores = scores + is_end * NEVER
        self.running_scores, best = open_scores.topk(self.num_beams)
        self.running = _pick(candidates, best)
        return _pick(beams, best)

    def _finish(self, candidates: Tensor, scores: Tensor, is_end: Tensor, length: int) -> None:
        """Merge the candidates that end and are among the first R into the finished ones."""
        may_enter = is_end.clone()
        may_enter[:, self.num_beams :] = False
        is_closed = ~self.can_improve
        if self.early_stopping:
            is_closed = is_closed | self.is_finished.all(1, keepdim=True)
        scores = scores / length**self.length_penalty
        scores = scores + is_closed * NEVER + ~may_enter * NEVER
        scores = torch.cat((self.finished_scores, scores), 1)
        self.finished_scores, best = scores.topk(self.num_beams)
        self.finished = _pick(torch.cat((self.finished, candidates), 1), best)
        self.is_finished = _pick(torch.cat((self.is_finished, may_enter), 1), best)

    def _is_over(self, length: int) -> bool:
        """Return true if no beam can improve the result, or enough hypotheses are finished."""
        hope = self.running_scores[:, :1] / length**self.length_penalty
        worst = self.finished_scores.min(1, keepdim=True).values
        worst = torch.where(self.is_finished, worst, NEVER)
        self.can_improve = self.can_improve & (hope > worst).any(1, keepdim=True)
        is_full = self.early_stopping and bool(self.is_finished.all())
        return is_full or not bool(self.can_improve.any())
