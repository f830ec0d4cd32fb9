"""The work of im2sp-speak: generate or read units, synthesize, transcribe, write the page."""

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from im2sp.pipeline import Vocoder, load_vocoder
from im2sp.pipeline.decoding.images import DEFAULT_MAX_PIXELS
from im2sp.pipeline.job.decode_pool import DecodePool
from im2sp.tools.engines.asr import Recognizer, load_recognizer
from im2sp.tools.speaking.captioner import Captioner, read_run
from im2sp.tools.speaking.config import BUNDLED, BUNDLED_BEAMS, SpeakConfig
from im2sp.tools.speaking.inputs import Clip, Images, Reject, list_images, read_units
from im2sp.tools.speaking.page import (
    REJECTS_NAME,
    SPOKEN_NAME,
    PageImage,
    PageItem,
    SpeechFolder,
    file_stems,
    page,
)

Log = Callable[[str], object]
_T = TypeVar("_T")
BATCH_CLIPS = 8
# Side of the square that the page's images fit into.
SHOWN_PX = 512
JPEG_QUALITY = 90
SUFFIXES = (".wav", ".jpg", ".units.jpg")


@dataclass(frozen=True, kw_only=True)
class SpeakResult:
    """Counts and times of a run."""

    out: Path
    num_inputs: int
    num_spoken: int
    num_rejects: int
    num_without_picture: int
    num_units: int
    speech_s: float
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class _Speech:
    """A clip with the image that it describes."""

    clip: Clip
    stem: str
    thumbnail: NDArray[np.uint8] | None = None
    decoded: NDArray[np.uint8] | None = None
    is_cut: bool = False
    """True if the view crops the image to a square, so its units show only that square."""


def speak(config: SpeakConfig, log: Log) -> SpeakResult:
    """Synthesize descriptions of images, or units, into a folder.

    Args:
        config: Checked settings; with `units` or `pictures`.
        log: Called with lines about the models in use.

    Raises:
        ValueError: Weights are missing or do not fit, the inputs cannot be read, or the folder
            has files of another origin. A problem with a single input is a reject.
    """
    start_s = time.perf_counter()
    log = (lambda _: None) if config.quiet else log
    vocoder = load_vocoder(config.vocoder, device=config.device)
    recognizer = load_recognizer(config.asr, config.device) if config.transcribe else None
    work = _Work(config, vocoder, recognizer)
    with ExitStack() as stack:
        if config.units is not None:
            title, parts, num_inputs, num_without = _unit_parts(config, work)
        else:
            title, parts, num_inputs, num_without = _image_parts(config, work, log, stack)
        log(f"vocoder {vocoder.name}: {vocoder.num_units} units, on {vocoder.device}")
        for part in parts:
            work.add(part)
    work.finish(title)
    return SpeakResult(
        out=config.out,
        num_inputs=num_inputs,
        num_spoken=len(work.items),
        num_rejects=len(work.rejects),
        num_without_picture=num_without,
        num_units=sum(item.num_units for item in work.items),
        speech_s=round(sum(item.duration_s for item in work.items), 2),
        elapsed_s=round(time.perf_counter() - start_s, 2),
    )


_Parts = tuple[str, Iterator[list[_Speech]], int, int]


def _unit_parts(config: SpeakConfig, work: "_Work") -> _Parts:
    """Title, batches of clips, number of inputs and of skipped ones, for a file of units."""
    assert config.units is not None
    found = read_units(config.units, config.split, config.limit)
    work.vocoder.check_units(found.num_units, found.fingerprint, str(config.units))
    work.check_durations(any(clip.durations is None for clip in found.clips))
    work.rejects += found.rejects
    clips: list[Clip] = []
    for clip in found.clips:
        if max(clip.units) < work.vocoder.num_units:
            clips.append(clip)
        else:
            reason = (
                f"unit {max(clip.units)}, but the vocoder {work.vocoder.name} has units 0 to"
                f" {work.vocoder.num_units - 1}"
            )
            work.rejects.append({"file": clip.key, "reason": reason})
    stems = file_stems([clip.key for clip in clips])
    work.begin(f"{stem}.wav" for stem in stems)
    spoken = [_Speech(clip=clip, stem=stem) for clip, stem in zip(clips, stems, strict=True)]
    num_inputs = len(found.clips) + len(found.rejects)
    return config.units.name, work.batches(spoken, "synthesize"), num_inputs, 0


def _image_parts(config: SpeakConfig, work: "_Work", log: Log, stack: ExitStack) -> _Parts:
    """Likewise for images, decoded by a pool on the stack."""
    run = read_run(config.run or BUNDLED)
    work.vocoder.check_units(None, run.speech_fingerprint, f"the run {run.name}")
    work.check_durations(True)
    found = list_images(config.pictures, config.image_root, config.split, config.limit)
    pool = stack.enter_context(
        DecodePool(
            num_workers=min(2, len(found.items)) or 1,
            view=run.image_tokenizer["view"],
            max_pixels=DEFAULT_MAX_PIXELS,
            thumbnail_px=SHOWN_PX,
        )
    )
    pool.start()
    captioner = Captioner(
        run,
        image_tokenizer=config.image_tokenizer,
        codebook=config.codebook,
        num_beams=config.num_beams or (BUNDLED_BEAMS if config.run in (None, BUNDLED) else 1),
        max_tokens=config.max_tokens,
        device=config.device,
    )
    work.vocoder.check_units(captioner.num_units, None, f"the run {run.name}")
    log(
        f"run {run.name}: step {run.step:,}, images through {captioner.tokenizer.name},"
        f" view {captioner.view.name}"
    )
    work.rejects += found.rejects
    stems = file_stems([item.key for item in found.items])
    work.begin(f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    parts = _described(captioner, pool, found, stems, work)
    num_inputs = len(found.items) + len(found.rejects)
    return f"Descriptions by {run.name}", parts, num_inputs, found.num_without


def _described(
    captioner: Captioner, pool: DecodePool, images: Images, stems: Sequence[str], work: "_Work"
) -> Iterator[list[_Speech]]:
    """Batches of descriptions of images; refused images are rejects."""
    named = list(zip(images.items, stems, strict=True))
    decoded = pool.decode(images.items)
    for batch in work.batches(named, "synthesize"):
        found = [(item, stem, next(decoded)) for item, stem in batch]
        work.rejects += [
            {"file": item.name, "reason": image.reason} for item, _, image in found if image.reason
        ]
        read = [(item, stem, image) for item, stem, image in found if not image.reason]
        descriptions = captioner.describe(
            [image.pixels for _, _, image in read if image.pixels is not None]
        )
        spoken: list[_Speech] = []
        for (item, stem, image), description in zip(read, descriptions, strict=True):
            if not description.units:
                reason = "the model generated no units (EOS came first)"
                work.rejects.append({"file": item.name, "reason": reason})
                continue
            clip = Clip(key=item.key, units=description.units)
            spoken.append(
                _Speech(
                    clip=clip,
                    stem=stem,
                    thumbnail=image.thumbnail,
                    decoded=description.decoded,
                    is_cut=captioner.view.keep_shape,
                )
            )
        yield spoken


class _Work:
    """Writer of batches of clips to a folder; collects the items of the page."""

    def __init__(
        self, config: SpeakConfig, vocoder: Vocoder, recognizer: Recognizer | None
    ) -> None:
        self.vocoder, self.recognizer, self._config = vocoder, recognizer, config
        self.items: list[PageItem] = []
        self.rejects: list[Reject] = []
        self._rows: list[dict[str, Any]] = []
        self._folder: SpeechFolder | None = None
        self._speaker = config.speaker
        if vocoder.num_speakers:
            self._speaker = config.speaker or 0
        if self._speaker is not None and self._speaker >= vocoder.num_speakers:
            raise ValueError(
                f"--speaker {self._speaker}: the vocoder {vocoder.name} has"
                f" {vocoder.num_speakers or 'no'} speakers"
            )

    def check_durations(self, is_needed: bool) -> None:
        """Refuse a vocoder without a duration predictor if durations are not given."""
        if is_needed and not self.vocoder.has_durations:
            raise ValueError(
                f"vocoder {self.vocoder.name}: has no duration predictor, and the units have no"
                " durations; give a vocoder with a duration predictor with --vocoder"
            )

    def begin(self, names: Iterable[str]) -> None:
        """Prepare the folder for files of these names; see `SpeechFolder`."""
        self._folder = SpeechFolder(self._config.out, names)

    def batches(self, items: Sequence[_T], what: str) -> Iterator[list[_T]]:
        """Yield batches of items, with a progress bar."""
        bar = tqdm(total=len(items), desc=what, disable=self._config.quiet, file=sys.stderr)
        with bar:
            for start in range(0, len(items), BATCH_CLIPS):
                batch = list(items[start : start + BATCH_CLIPS])
                yield batch
                bar.update(len(batch))

    def add(self, spoken: Sequence[_Speech]) -> None:
        """Synthesize a batch and write its files."""
        unknown = [one for one in spoken if one.clip.durations is None]
        given = [one for one in spoken if one.clip.durations is not None]
        waveforms: dict[str, NDArray[np.float32]] = {}
        for part in (unknown, given):
            durations = [one.clip.durations or [] for one in part] if part is given else None
            units = [one.clip.units for one in part]
            made = self.vocoder.synthesize_batch(units, durations, self._speaker)
            waveforms |= {one.stem: samples for one, samples in zip(part, made, strict=True)}
        for one in spoken:
            self._write(one, waveforms[one.stem])

    def _write(self, one: _Speech, samples: NDArray[np.float32]) -> None:
        assert self._folder is not None
        clip, wav = one.clip, f"{one.stem}.wav"
        self._folder.write(wav, wav_bytes(samples, self.vocoder.rate_hz))
        text = None if self.recognizer is None else self.recognizer.transcribe(samples)
        if text is not None and not (self._config.quiet or self._config.json):
            tqdm.write(f"{clip.key}: {text}", file=sys.stdout)
        duration_s = len(samples) / self.vocoder.rate_hz
        row = {"key": clip.key, "wav": wav, "duration_s": duration_s, "text": text}
        row["units"] = clip.units
        if clip.durations is not None:
            row["durations"] = clip.durations
        self._rows.append(row)
        self.items.append(
            PageItem(
                key=clip.key,
                wav=wav,
                num_units=len(clip.units),
                duration_s=duration_s,
                text=text,
                **self._pictures(one),
            )
        )

    def _pictures(self, one: _Speech) -> dict[str, PageImage]:
        """Write the image and the one decoded from its units; return their page entries."""
        assert self._folder is not None
        if one.thumbnail is None:
            return {}
        height, width, _ = one.thumbnail.shape
        self._folder.write(f"{one.stem}.jpg", jpeg_bytes(Image.fromarray(one.thumbnail)))
        found = {"picture": PageImage(file=f"{one.stem}.jpg", width_px=width, height_px=height)}
        if one.decoded is not None:
            name = f"{one.stem}.units.jpg"
            self._folder.write(name, jpeg_bytes(Image.fromarray(one.decoded)))
            if one.is_cut:
                width = height = min(width, height)
            found["decoded"] = PageImage(file=name, width_px=width, height_px=height)
        return found

    def finish(self, title: str) -> None:
        """Write the tables and the page."""
        assert self._folder is not None
        self._folder.write_rows(SPOKEN_NAME, self._rows)
        self._folder.write_rows(REJECTS_NAME, self.rejects)
        about = [f"{len(self.items):,} clips synthesized by the vocoder {self.vocoder.name}"]
        if self.recognizer is not None:
            about.append(f"The text is transcribed by {self.recognizer.name}.")
        self._folder.finish(page(title, about, self.items))


def wav_bytes(samples: NDArray[np.float32], rate_hz: int) -> bytes:
    """(T,) float32 in [-1, 1] as a 16-bit wav file."""
    file = io.BytesIO()
    sf.write(file, samples, rate_hz, "PCM_16", format="WAV")
    return file.getvalue()


def jpeg_bytes(image: Image.Image) -> bytes:
    """An image as a JPEG file, without metadata."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
