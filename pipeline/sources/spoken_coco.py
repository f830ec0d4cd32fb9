"""SpokenCOCO beside a Karpathy file: who speaks about which image stands in its own JSON files."""

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
from im2sp.pipeline.sources.rows import (
    ImageNames,
    Resolver,
    Spoken,
    make_audio_finder,
    spoken_utterance,
)

SPOKEN_COCO_FILES = ("SpokenCOCO_train.json", "SpokenCOCO_val.json")

_EXPECTED = 'a SpokenCOCO file, {"data": [{"image", "captions": [{"text", "wav"}]}]}'
_BETWEEN_WORDS = re.compile(r"[\W_]+")


def add_spoken_coco(items: list[SourceItem], audio_root: Path) -> list[SourceItem]:
    """Give items the clips that the SpokenCOCO files in `audio_root` list for their images.

    Clips come in the order of the files, train before val, with the text that stands there. A
    caption of the item stays, without speech, where none of these texts has its letters and
    digits. It does not matter which of the files an image stands in. What is wrong in the files is
    a reject each; images that are no item's are passed over.

    Args:
        items: Of a Karpathy file; `name` is the image's path there.
        audio_root: Folder with one or both of `SPOKEN_COCO_FILES`; the clips' paths start there.

    Raises:
        SourceError: A file cannot be read as what it should be.
    """
    names, clips = ImageNames(items), _Clips(make_audio_finder(audio_root))
    speech: dict[int, list[Utterance]] = {}
    rejects: list[SourceItem] = []
    for file_name in SPOKEN_COCO_FILES:
        if not (audio_root / file_name).exists():
            continue
        for index, entry in enumerate(read_json_list(audio_root / file_name, "data", _EXPECTED)):
            where = f"{file_name} data[{index}]"
            owner = _entry_problem(entry) or names.find(entry["image"])
            if isinstance(owner, str):
                rejects.append(SourceItem(key=where, image=None, name=where, error=owner))
            elif owner is not None:
                speech.setdefault(owner, []).extend(
                    clips.utterance(caption, owner, f"{where}.captions[{number}]")
                    for number, caption in enumerate(entry["captions"])
                )
    heard = [_with_speech(item, speech.get(index)) for index, item in enumerate(items)]
    return heard + rejects


class _Clips:
    """The clips of the files so far: where they lie and whose they are."""

    def __init__(self, find: Resolver) -> None:
        self._find = find
        self._first_places: dict[tuple[int, str], str] = {}

    def utterance(self, caption: Any, owner: int, where: str) -> Utterance:
        """One entry of `captions`; what is wrong with it becomes the utterance's error."""
        wav = caption.get("wav") if isinstance(caption, dict) else None
        if not isinstance(wav, str) or not wav:
            error = "expected an object with the clip's path under 'wav'"
            return Utterance(audio=None, name=where, error=error)
        text = caption.get("text")
        if not isinstance(text, str | None) or not is_utf8(text or ""):
            error = f"{where}: the text is not valid UTF-8 text"
            return Utterance(audio=None, name=printable_utf8(wav), error=error)
        first = self._first_places.setdefault((owner, wav), where)
        if first is not where:
            error = f"{where}: already in {first} for the same image"
            return Utterance(audio=None, name=printable_utf8(wav), error=error)
        return spoken_utterance(Spoken(wav, text or None, where), self._find)


def _entry_problem(entry: Any) -> str | None:
    """Why nobody can tell what an entry of `data` says."""
    if not isinstance(entry, dict):
        return f"found {type(entry).__name__}, expected an object"
    if not isinstance(entry.get("image"), str) or not isinstance(entry.get("captions"), list):
        return "expected a path under 'image' and a list under 'captions'"
    return None


def _with_speech(item: SourceItem, utterances: list[Utterance] | None) -> SourceItem:
    if not utterances:
        return item
    said = {_letters(utterance.text) for utterance in utterances if utterance.text}
    captions = tuple(caption for caption in item.captions if _letters(caption) not in said)
    return replace(item, captions=captions, utterances=tuple(utterances))


def _letters(text: str) -> str:
    """What two ways to write one sentence share: `A man's dog.` and `A MANS DOG` are `amansdog`."""
    return _BETWEEN_WORDS.sub("", text.casefold())
