"""Which media of a source a job takes, and what texts go with the clips it accepts."""

from collections.abc import Sequence
from dataclasses import replace

from im2sp.pipeline.job_config import Only
from im2sp.pipeline.source_items import SourceError, SourceItem, SourceListing, Utterance


def narrowed(listing: SourceListing, only: Only | None, name: object) -> SourceListing:
    """The listing as if the source held images alone, or audio alone; as it is for None.

    Without audio, what is said is a caption like any other. Inputs of which nothing is left are
    left out; those that cannot be used stay, and are refused.

    Args:
        listing: What the source holds.
        only: What to keep.
        name: What the message calls the source.

    Raises:
        SourceError: Nothing is left.
    """
    if only is None:
        return listing
    items: list[SourceItem] = []
    for item in listing.items:
        if item.error is not None:
            items.append(replace(item, utterances=()))
        elif only == "images" and item.image is not None:
            captions = (*texts_of(item.utterances), *item.captions)
            items.append(replace(item, utterances=(), captions=captions))
        elif only == "audio" and item.utterances:
            items.append(replace(item, image=None))
    if not items:
        raise SourceError(f"{name}: holds no {only}; leave --only {only} out")
    return replace(listing, items=items)


def has_speech(items: Sequence[SourceItem]) -> bool:
    """Whether a speech tokenizer is needed: is there a clip that may be good?"""
    return any(
        utterance.error is None
        for item in items
        if item.error is None
        for utterance in item.utterances
    )


def has_images(items: Sequence[SourceItem]) -> bool:
    """Whether an image tokenizer is needed.

    It is for a source of neither, all of whose inputs cannot be used: those are missing pictures.
    """
    return any(item.error is None and item.image is not None for item in items) or not any(
        item.error is None and item.utterances for item in items
    )


def texts_of(utterances: Sequence[Utterance]) -> list[str]:
    """What the clips say, as far as the source tells."""
    return [utterance.text for utterance in utterances if utterance.text]


def captions_of(
    item: SourceItem, accepted: Sequence[Utterance], refused: Sequence[Utterance]
) -> list[str]:
    """Captions of a sample: one a stored utterance, in their order, then those without speech.

    An utterance whose text the source does not tell has "", so that the others keep their place;
    where there is no text at all, there are no captions.
    """
    rest = [*texts_of(refused), *item.captions]
    if not rest and not texts_of(accepted):
        return []
    return [utterance.text or "" for utterance in accepted] + rest
