"""SpokenCOCO for a Karpathy file: clips of each image, listed in SpokenCOCO's JSON files."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from im2sp.pipeline.sources.items import (
    SourceItem,
    Utterance,
    is_utf8,
    printable_utf8,
    read_json_list,
)
from im2sp.pipeline.sources.roots import Resolver, make_audio_finder
from im2sp.pipeline.sources.rows import (
    ImageNames,
    RowClip,
    clip_utterance,
)

SPOKEN_COCO_FILES = ("SpokenCOCO_train.json", "SpokenCOCO_val.json")

_EXPECTED = 'a SpokenCOCO file, {"data": [{"image", "captions": [{"text", "wav"}]}]}'
_BETWEEN_WORDS = re.compile(r"[\W_]+")


def add_spoken_coco(items: list[SourceItem], audio_root: Path) -> list[SourceItem]:
    """Add the clips that the SpokenCOCO files in `audio_root` list for the items' images.

    Clips are in the order of the files, train before val, with the text listed there. A caption of
    the item is kept, without speech, if none of these texts has the same letters and digits. An
    image may be in either file. Each error in the files is a reject; images without an item are
    skipped.

    Args:
        items: Items of a Karpathy file; `name` is the image's path there.
        audio_root: Folder with one or both of `SPOKEN_COCO_FILES`; clip paths are relative to it.

    Raises:
        SourceError: A file cannot be read or has another form.
    """
    names, clips = ImageNames(items), _Clips(make_audio_finder(audio_root))
    speech: dict[int, list[Utterance]] = {}
    rejects: list[SourceItem] = []
    for file_name in SPOKEN_COCO_FILES:
        if not (audio_root / file_name).exists():
            continue
        for index, entry in enumerate(read_json_list(audio_root / file_name, "data", _EXPECTED)):
            where = f"{file_name} data[{index}]"
            image_index = _entry_problem(entry) or names.find(entry["image"])
            if isinstance(image_index, str):
                rejects.append(SourceItem(key=where, image=None, name=where, error=image_index))
            elif image_index is not None:
                speech.setdefault(image_index, []).extend(
                    clips.utterance(caption, image_index, f"{where}.captions[{number}]")
                    for number, caption in enumerate(entry["captions"])
                )
    return [_with_speech(item, speech.get(index)) for index, item in enumerate(items)] + rejects


class _Clips:
    """Clips read so far, by image; finds their files and rejects repeated ones."""

    def __init__(self, find: Resolver) -> None:
        self._find = find
        self._first_places: dict[tuple[int, str], str] = {}

    def utterance(self, caption: Any, image_index: int, where: str) -> Utterance:
        """Convert an entry of `captions`; a problem with it becomes the utterance's error."""
        wav = caption.get("wav") if isinstance(caption, dict) else None
        if not isinstance(wav, str) or not wav:
            error = "expected an object with the clip's path under 'wav'"
            return Utterance(audio=None, name=where, error=error)
        text = caption.get("text")
        if not isinstance(text, str | None) or not is_utf8(text or ""):
            error = f"{where}: the text is not valid UTF-8 text"
            return Utterance(audio=None, name=printable_utf8(wav), error=error)
        first = self._first_places.setdefault((image_index, wav), where)
        if first is not where:
            error = f"{where}: already in {first} for the same image"
            return Utterance(audio=None, name=printable_utf8(wav), error=error)
        return clip_utterance(RowClip(wav, text or None, where), self._find)


def _entry_problem(entry: Any) -> str | None:
    """Problem that makes an entry of `data` unusable; None if there is none."""
    if not isinstance(entry, dict):
        return f"found {type(entry).__name__}, expected an object"
    if not isinstance(entry.get("image"), str) or not isinstance(entry.get("captions"), list):
        return "expected a path under 'image' and a list under 'captions'"
    return None


def _with_speech(item: SourceItem, utterances: list[Utterance] | None) -> SourceItem:
    if not utterances:
        return item
    transcripts = {_letters(utterance.text) for utterance in utterances if utterance.text}
    captions = tuple(caption for caption in item.captions if _letters(caption) not in transcripts)
    return replace(item, captions=captions, utterances=tuple(utterances))


def _letters(text: str) -> str:
    """Letters and digits of a text: `A man's dog.` and `A MANS DOG` are both `amansdog`."""
    return _BETWEEN_WORDS.sub("", text.casefold())
