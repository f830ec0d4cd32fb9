"""What a vocoder learns from: spoken captions or recordings, with their units.

A corpus (`speech_corpus`) gets two more files: `texts.json` (what its clips say, where known) and
`units-*.uint16` (the units of all frames, by the fingerprint of their tokenizer).
"""

import json
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from im2sp.pipeline.decoding.audio import AudioError, read_audio
from im2sp.pipeline.sources import list_source
from im2sp.pipeline.speech_tokenizer.tokenizer import CHUNK_SAMPLES, SpeechTokenizer
from im2sp.shards import ShardDataset
from im2sp.shards.files import atomic_file
from im2sp.tools.fitting.speech_corpus import Corpus, Manner, make_corpus, read_captions
from im2sp.tools.fitting.vocoder_trainer import Batch, Recipe

FRAME_SAMPLES = 320
# Peaks of clips are brought here, as in the published training; units say little of loudness.
PEAK = 0.95
ENCODE_CLIPS = 64


def speak_captions(
    folder: Path, path: Path, split: str, voice: str, count: int, seed: int
) -> Corpus:
    """A corpus of some captions of a split, drawn by the seed, in one voice; made once."""
    if not (folder / "texts.json").exists():
        captions = read_captions(path, split)
        drawn = np.random.default_rng(seed).permutation(len(captions))[:count]
        captions = [captions[i] for i in drawn]
        made = make_corpus(folder, captions, [Manner(voice=voice)] * len(captions))
        texts = [captions[int(clip.name.split()[0])] for clip in made.clips]
        _write_texts(folder, texts)
    return Corpus(folder)


def read_recordings(
    train_dir: Path,
    val_dir: Path,
    source: Path,
    num_val: int,
    seed: int,
    *,
    audio_root: Path | None = None,
    names: Container[str] | None = None,
) -> tuple[Corpus, Corpus]:
    """Corpora of a source's audio, some clips of it held back; made once.

    A source is all that `list_source` reads: a folder, a tar, an LJSpeech folder, a manifest.
    Clips that cannot be read, or are longer than 100 s, are left out with a line on stderr.

    Args:
        train_dir: Folder of the corpus to train with.
        val_dir: Folder of the one that is held back.
        source: Where the audio is.
        num_val: Clips to hold back.
        seed: Which ones.
        audio_root: As `list_source` takes it.
        names: Take the clips of these names only.

    Raises:
        ValueError: Not more audio than is held back.
    """
    if not ((train_dir / "texts.json").exists() and (val_dir / "texts.json").exists()):
        items = list_source(source, audio_root=audio_root).items
        spoken = [utterance for item in items for utterance in item.utterances]
        spoken = [
            utterance
            for utterance in spoken
            if utterance.audio is not None and (names is None or utterance.name in names)
        ]
        if len(spoken) <= num_val:
            raise ValueError(
                f"{source}: {len(spoken)} recordings, expected more than the {num_val} that are"
                " held back to measure with"
            )
        held_back = set(np.random.default_rng(seed).permutation(len(spoken))[:num_val].tolist())
        for folder, is_val in ((train_dir, False), (val_dir, True)):
            chosen = [one for i, one in enumerate(spoken) if (i in held_back) == is_val]
            texts: list[str | None] = []

            def waveforms(
                chosen: list = chosen, texts: list[str | None] = texts
            ) -> Iterator[tuple[str, np.ndarray]]:
                for utterance in tqdm(chosen, desc="read", unit=" clips"):
                    try:
                        waveform = read_audio(utterance.audio, name=utterance.name)
                    except AudioError as error:
                        print(f"left out: {error}", file=sys.stderr)
                        continue
                    if len(waveform) > CHUNK_SAMPLES:
                        print(f"left out: {utterance.name} is over 100 s long", file=sys.stderr)
                        continue
                    texts.append(utterance.text)
                    yield utterance.name, waveform

            make_corpus(folder, [], [], waveforms())
            _write_texts(folder, texts)
    return Corpus(train_dir), Corpus(val_dir)


def _write_texts(folder: Path, texts: list[str] | list[str | None]) -> None:
    with atomic_file(folder / "texts.json") as file:
        file.write(json.dumps(texts, ensure_ascii=False).encode())


def read_texts(folder: Path) -> list[str | None]:
    """What the clips of a corpus say; None where that is not known."""
    return json.loads((folder / "texts.json").read_bytes())


def encode_corpus(folder: Path, corpus: Corpus, tokenizer: SpeechTokenizer) -> list[np.ndarray]:
    """(T,) uint16 units of every clip, repeats kept; encoded once for each tokenizer."""
    path = folder / f"units-{tokenizer.fingerprint[:16]}.uint16"
    if not path.exists():
        with atomic_file(path) as file:
            for start in tqdm(range(0, len(corpus), ENCODE_CLIPS), desc="encode"):
                rows = range(start, min(len(corpus), start + ENCODE_CLIPS))
                for units in tokenizer.encode_batch([corpus.waveform(row) for row in rows]):
                    file.write(units.astype("<u2").tobytes())
    units = np.fromfile(path, "<u2")
    ends = np.cumsum([clip.num_frames for clip in corpus.clips])
    if len(units) != ends[-1]:
        raise ValueError(f"{path}: {len(units)} units, expected {ends[-1]}; delete it")
    return np.split(units, ends[:-1])


def units_of_dataset(
    dataset: ShardDataset, source: Path, audio_root: Path | None = None
) -> dict[str, np.ndarray]:
    """What a dataset holds of the speech that it was made of: name of a clip -> its units.

    Args:
        dataset: With speech units and durations.
        source: What it was tokenized from.
        audio_root: As `im2sp-tokenize` was given it.

    Returns:
        (T,) uint16 of each clip, repeats kept: a unit each 20 ms. Samples of which clips were
        refused are left out, for it is not known which.

    Raises:
        ValueError: The dataset has no speech of this source.
    """
    items = list_source(source, audio_root=audio_root).items
    utterances = {item.key: item.utterances for item in items}
    found: dict[str, np.ndarray] = {}
    for sample in dataset:
        clips = utterances.get(sample.key, ())
        if sample.durations is None or len(clips) != len(sample.speech_units):
            continue
        for clip, units, durations in zip(
            clips, sample.speech_units, sample.durations, strict=True
        ):
            found[clip.name] = np.repeat(units, durations.astype(np.int64))
    if not found:
        raise ValueError(
            f"{dataset.path}: holds no speech of {source}; expected the dataset that im2sp-tokenize"
            " made of it, with durations"
        )
    return found


def take_units(corpus: Corpus, units: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The units of a corpus's clips, by name.

    Raises:
        ValueError: A clip has none, or not as many as it has frames of 20 ms.
    """
    taken = []
    for clip in corpus.clips:
        num_units = len(units.get(clip.name, ()))
        if num_units != clip.num_frames:
            raise ValueError(
                f"{clip.name}: {num_units} units for {clip.num_frames} frames of sound; expected"
                " the dataset that was made of this sound, or another --out"
            )
        taken.append(units[clip.name])
    return taken


def collapse(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units without their repeats, and how often each was there."""
    starts = np.flatnonzero(np.r_[True, units[1:] != units[:-1]])
    return units[starts], np.diff(np.r_[starts, len(units)])


def normalised(waveform: np.ndarray) -> np.ndarray:
    """Brought to the peak that the vocoder speaks with; silence stays."""
    peak = float(np.abs(waveform).max(initial=0.0))
    return waveform * (PEAK / peak) if peak else waveform


@dataclass(frozen=True)
class Segments:
    """Draws segments of clips with their units."""

    corpus: Corpus
    units: list[np.ndarray]
    recipe: Recipe

    def __post_init__(self) -> None:
        """Check that there is something to draw."""
        if not any(len(units) >= self.recipe.segment_frames for units in self.units):
            raise ValueError(
                f"none of {len(self.units)} clips is {self.recipe.segment_frames} frames of 20 ms"
                " long, which a segment is"
            )

    def draw(self, generator: np.random.Generator) -> Batch:
        """Segments of `segment_frames`, and as many whole clips' durations."""
        size, num_frames = self.recipe.batch_size, self.recipe.segment_frames
        units = np.zeros((size, num_frames), np.int64)
        samples = np.zeros((size, num_frames * FRAME_SAMPLES), np.float32)
        runs: list[tuple[np.ndarray, np.ndarray]] = []
        for row in range(size):
            number = self._draw_clip(generator)
            first = int(generator.integers(len(self.units[number]) - num_frames + 1))
            units[row] = self.units[number][first : first + num_frames]
            start = first * FRAME_SAMPLES
            waveform = normalised(self.corpus.waveform(number))
            samples[row] = waveform[start : start + samples.shape[1]]
            runs.append(collapse(self.units[number]))
        longest = max(len(durations) for _, durations in runs)
        collapsed, durations = np.zeros((2, size, longest), np.int64)
        for row, (run_units, run_durations) in enumerate(runs):
            collapsed[row, : len(run_units)] = run_units
            durations[row, : len(run_units)] = run_durations
        return Batch(
            units=torch.from_numpy(units),
            samples=torch.from_numpy(samples),
            collapsed=torch.from_numpy(collapsed),
            durations=torch.from_numpy(durations),
        )

    def _draw_clip(self, generator: np.random.Generator) -> int:
        """Any clip that is long enough."""
        while True:
            number = int(generator.integers(len(self.units)))
            if len(self.units[number]) >= self.recipe.segment_frames:
                return number
