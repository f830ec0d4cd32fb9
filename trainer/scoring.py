"""Validation score of generations: BLEU."""

from collections.abc import Hashable, Iterable, Sequence

import torch

from im2sp.trainer.bleu import NUM_SUMS, bleu, bleu_sums, words_of
from im2sp.trainer.data import TokenBatch
from im2sp.trainer.generation import generate
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.ranks import Ranks
from im2sp.trainer.text import TextModel
from im2sp.trainer.unit_pieces import UnitPieces

_LENGTH_FACTOR = 2


def generated_bleu(
    model: Im2SpModel,
    batches: Iterable[TokenBatch],
    text_model: TextModel | UnitPieces | None,
    ranks: Ranks,
    max_images: int | None = None,
) -> float:
    """BLEU-4 of greedy generations, over words or speech units, of all processes together.

    A generation ends at twice the length of the longest reference in its batch.

    Args:
        model: Model on the device of `ranks`.
        batches: Batches of this process; all texts of an image are in one batch.
        text_model: Text model or unit pieces of the run; None for speech units without pieces.
        ranks: Processes of the run.
        max_images: Stop after about this many images on all processes together.

    Returns:
        BLEU in [0, 1].
    """
    sizes = model.config
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64)
    num_images = 0
    for batch in batches:
        num_images += len(batch.images_packed)
        if len(batch.images_packed):
            units, *_ = batch.to(ranks.device)
            longest = min(sizes.max_positions, _LENGTH_FACTOR * batch.tokens.shape[1])
            found = generate(model, units, max_tokens=longest)
            for ids, references in zip(found, _references(model, batch), strict=True):
                generated = _symbols(ids, text_model)
                expected = [_symbols(reference, text_model) for reference in references]
                sums += torch.tensor(bleu_sums(generated, expected), dtype=torch.float64)
        if max_images is not None and num_images * ranks.world_size >= max_images:
            break
    return bleu(ranks.summed(sums.to(ranks.device)).tolist())


def _references(model: Im2SpModel, batch: TokenBatch) -> list[list[list[int]]]:
    """Ids of all texts of each image."""
    references: list[list[list[int]]] = [[] for _ in range(len(batch.images_packed))]
    for row, owner in zip(batch.tokens.tolist(), batch.owner.tolist(), strict=True):
        references[owner].append(model.config.vocabulary.decode(row))
    return references


def _symbols(ids: list[int], text_model: TextModel | UnitPieces | None) -> Sequence[Hashable]:
    """Words, or speech units: `ids` of a speech model are units even if it uses pieces."""
    if text_model is None or isinstance(text_model, UnitPieces):
        return ids
    return words_of(text_model.decode(ids))
