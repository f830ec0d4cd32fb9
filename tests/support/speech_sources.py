"""Small folders in the layouts of speech data sets."""

import csv
import json
from pathlib import Path

from im2sp.pipeline.sources import list_source
from support.sounds import encoded
from support.sources import write

FLICKR8K_CAPTIONS = {
    "667626_18933d713e.jpg": ["A dog runs .", "The dog .", "Brown dog", "Dog", "It runs ."],
    "1000268201_693b08cb0e.jpg": ["A girl .", "Girl climbs", "Stairs", "A child", "Pink dress ."],
}
COCO_CAPTIONS = {
    "train2014/COCO_train2014_000000000009.jpg": ("train", ["Two dogs.", "The man's t-shirt."]),
    "val2014/COCO_val2014_000000000042.jpg": ("restval", ["A shoe rack", "Shoes and a dog"]),
    "val2014/COCO_val2014_000000000073.jpg": ("val", ["A motorbike.", "Parked bikes."]),
}
LJSPEECH = {
    "LJ001-0001": ("Printing, in the only sense", "Printing, in the only sense"),
    "LJ001-0002": ('in "1790" here', 'in "seventeen ninety" here'),
    "LJ050-0278": ("the recommendations we have made", ""),
}


def touch(folder: Path, *names: str) -> Path:
    """Empty files, for tests that only list them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def speech_of(path: Path, **options) -> dict[str, list[str]]:
    """Names of the good clips of each good item by its key."""
    return {
        item.key: [one.name for one in item.utterances if one.error is None]
        for item in list_source(path, **options).items
        if item.error is None
    }


def utterance_rejects_of(path: Path, **options) -> dict[str, str]:
    """Errors of the refused clips of good items, by name."""
    items = list_source(path, **options).items
    clips = [clip for item in items if not item.error for clip in item.utterances]
    assert all((clip.audio is None) == (clip.error is not None) for clip in clips)
    return {clip.name: clip.error for clip in clips if clip.error}


def write_sound(folder: Path, *names: str) -> Path:
    """Short clips in the formats of their file names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(path.suffix[1:].upper()))
    return folder


def write_karpathy(path: Path, images: list[dict]) -> Path:
    path.write_text(json.dumps({"dataset": "made-up", "images": images}))
    return path


def karpathy_image(filename: str, split: str, captions: list[str], **more) -> dict:
    sentences = [{"raw": text, "tokens": text.lower().split()} for text in captions]
    return {"filename": filename, "split": split, "sentences": sentences, **more}


def flickr8k_tree(folder: Path) -> tuple[Path, Path, Path]:
    """Karpathy file, image root and audio root of two images with five clips each."""
    images, audio = folder / "Flicker8k_Dataset", folder / "flickr_audio"
    write(images, *FLICKR8K_CAPTIONS)
    stems = [name.removesuffix(".jpg") for name in FLICKR8K_CAPTIONS]
    write_sound(audio, *(f"wavs/{stem}_{number}.wav" for stem in stems for number in range(5)))
    (audio / "wav2spk.txt").write_text("".join(f"{stem}_0.wav 7\n" for stem in stems))
    entries = [karpathy_image(*item) for item in zip(
        FLICKR8K_CAPTIONS, ("train", "val"), FLICKR8K_CAPTIONS.values(), strict=True
    )]  # fmt: skip
    return write_karpathy(folder / "dataset_flickr8k.json", entries), images, audio


def spoken_coco_entry(image: str, *texts: str) -> dict:
    """An entry of `data` with one clip per text."""
    part, number = ("val" if "val2014" in image else "train"), int(image[-16:-4])
    captions = [
        {"text": text, "speaker": f"m{index}", "uttid": f"m{index}-{number}_{index}",
         "wav": f"wavs/{part}/0/m{index}-{number}_{index}.wav"}
        for index, text in enumerate(texts)
    ]  # fmt: skip
    return {"image": image, "captions": captions}


def write_spoken_coco(audio: Path, part: str, entries: list) -> Path:
    audio.mkdir(parents=True, exist_ok=True)
    path = audio / f"SpokenCOCO_{part}.json"
    path.write_text(json.dumps({"data": entries}))
    return path


def coco_tree(folder: Path) -> tuple[Path, Path, Path]:
    """Karpathy file, image root and audio root of three images; each has one caption unspoken."""
    images, audio = folder / "coco", folder / "SpokenCOCO"
    write(images, *COCO_CAPTIONS)
    entries, spoken = [], []
    for image, (split, captions) in COCO_CAPTIONS.items():
        place, _, filename = image.rpartition("/")
        entries.append(karpathy_image(filename, split, captions, filepath=place, cocoid=1))
        # Transcripts: the last caption in the corpus's spelling, and one that is no caption.
        said = captions[-1].upper().replace("'", "").replace("-", " ").rstrip(".")
        spoken.append((split, spoken_coco_entry(image, said, "NO CAPTION OF COCO")))
        write_sound(audio, *(clip["wav"] for clip in spoken[-1][1]["captions"]))
    write_spoken_coco(audio, "train", [one for split, one in spoken if split != "val"])
    write_spoken_coco(audio, "val", [one for split, one in spoken if split == "val"])
    return write_karpathy(folder / "dataset_coco.json", entries), images, audio


def ljspeech_tree(folder: Path) -> Path:
    write_sound(folder, *(f"wavs/{name}.wav" for name in LJSPEECH))
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="|", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerows([name, *texts] for name, texts in LJSPEECH.items())
    (folder / "README").write_text("LJSpeech")
    return folder
