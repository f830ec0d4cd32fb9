"""Training data of a vocoder: synthesized captions or recordings, with their units.

A corpus (`speech_corpus`) gets two more files: `texts.json` (texts of its clips, if known) and
`units-*.uint16` (units of all frames, named by the fingerprint of their tokenizer).
"""

import json
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
from im2sp.shards.errors import log
from im2sp.shards.files import atomic_file
from im2sp.tools.fitting.speech_corpus import Corpus, Manner, make_corpus, read_captions
from im2sp.tools.fitting.vocoder_trainer import Batch, Recipe

FRAME_SAMPLES = 320
# Peak of normalised clips, as in the published training; units contain little about loudness.
PEAK = 0.95
ENCODE_CLIPS = 64


def speak_captions(
    folder: Path, path: Path, split: str, voice: str, count: int, seed: int
) -> Corpus:
    """Corpus of captions drawn from a split, in one voice; created once."""
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
    """Corpora of a source's audio, with some clips held out; created once.

    A source is all that `list_source` reads: a folder, a tar, an LJSpeech folder, a source
    list. Unreadable clips and clips over 100 s are skipped with a line on stderr.

    Args:
        train_dir: Folder of the training corpus.
        val_dir: Folder of the held-out corpus.
        source: Source of the audio.
        num_val: Number of clips to hold out.
        seed: Random seed of their choice.
        audio_root: As for `list_source`.
        names: Use only the clips with these names.

    Raises:
        ValueError: Not more clips than are held out.
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
                " held out for measuring"
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
                        log(f"skipped: {error}")
                        continue
                    if len(waveform) > CHUNK_SAMPLES:
                        log(f"skipped: {utterance.name} is over 100 s long")
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
    """Texts of the clips of a corpus; None if unknown."""
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
    """Units of a source's clips in the dataset that was tokenized from it, by clip name.

    Args:
        dataset: Dataset with speech units and durations.
        source: Source that was tokenized.
        audio_root: The --audio-root of im2sp-tokenize.

    Returns:
        (T,) uint16 of each clip, repeats kept: one unit per 20 ms. Samples with refused clips are
        skipped, because the dataset does not record which clips they were.

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
            " made from it, with durations"
        )
    return found


def take_units(corpus: Corpus, units: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Select the units of a corpus's clips by name.

    Raises:
        ValueError: A clip has no units, or not one per frame of 20 ms.
    """
    taken = []
    for clip in corpus.clips:
        num_units = len(units.get(clip.name, ()))
        if num_units != clip.num_frames:
            raise ValueError(
                f"{clip.name}: {num_units} units for {clip.num_frames} frames of audio; expected"
                " the dataset that was made from this audio, or another --out"
            )
        taken.append(units[clip.name])
    return taken


def collapse(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Units without repeats, and the length of each run."""
    starts = np.flatnonzero(np.r_[True, units[1:] != units[:-1]])
    return units[starts], np.diff(np.r_[starts, len(units)])


def normalised(waveform: np.ndarray) -> np.ndarray:
    """Scale a waveform to the vocoder's peak level; silence is unchanged."""
    peak = float(np.abs(waveform).max(initial=0.0))
    return waveform * (PEAK / peak) if peak else waveform


@dataclass(frozen=True)
class Segments:
    """Random segments of clips with their units."""

    corpus: Corpus
    units: list[np.ndarray]
    recipe: Recipe

    def __post_init__(self) -> None:
        """Raise ValueError if no clip is as long as a segment."""
        if not any(len(units) >= self.recipe.segment_frames for units in self.units):
            raise ValueError(
                f"none of {len(self.units)} clips is {self.recipe.segment_frames} frames of 20 ms"
                " long, the length of a segment"
            )

    def draw(self, generator: np.random.Generator) -> Batch:
        """Draw segments of `segment_frames`, and the durations of as many whole clips."""
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
        """Draw a clip that is long enough."""
        while True:
            number = int(generator.integers(len(self.units)))
            if len(self.units[number]) >= self.recipe.segment_frames:
                return number
