"""The work of im2sp-speak: read images or units, generate descriptions, write the folder."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from im2sp.pipeline import TextToUnits, Vocoder, load_vocoder
from im2sp.pipeline.decoding.images import DEFAULT_MAX_PIXELS
from im2sp.pipeline.job.decode_pool import DecodePool
from im2sp.pipeline.sources.items import texts_of
from im2sp.tools.engines.asr import load_recognizer
from im2sp.tools.speaking.captioner import Captioner, Run, load_t2u, read_runs
from im2sp.tools.speaking.config import BUNDLED_T2U, BUNDLED_TEXT, SpeakConfig
from im2sp.tools.speaking.inputs import Clip, Images, list_images, read_units
from im2sp.tools.speaking.output import Described, Output, Sound
from im2sp.tools.speaking.page import file_stems

Log = Callable[[str], object]
_T = TypeVar("_T")
BATCH_CLIPS = 8
# Side of the square that the page's images fit into.
SHOWN_PX = 512
SUFFIXES = (".wav", ".jpg", ".units.jpg")


@dataclass(frozen=True, kw_only=True)
class SpeakResult:
    """Counts and times of a run."""

    out: Path
    num_inputs: int
    num_spoken: int
    """Descriptions, with or without sound."""
    num_rejects: int
    num_without_picture: int
    num_units: int
    speech_s: float
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """Batches of descriptions, and the page text about them."""

    title: str
    about: list[str]
    batches: Iterator[list[Described]]
    num_inputs: int
    num_without: int = 0


def speak(config: SpeakConfig, log: Log) -> SpeakResult:
    """Write descriptions of images, or synthesized units, into a folder.

    Args:
        config: Checked settings; with `units` or `pictures`.
        log: Called with lines about the models in use.

    Raises:
        ValueError: Weights are missing or do not fit, the inputs cannot be read, or the folder
            has files of another origin. A problem with a single input is a reject.
    """
    start_s = time.perf_counter()
    log = (lambda _: None) if config.quiet else log
    runs = [] if config.units is not None else _runs(config)
    t2u = load_t2u(_t2u_name(config), runs, config.device) if runs else None
    output = Output(config, _sound(config, runs, t2u))
    with ExitStack() as stack:
        if config.units is not None:
            parts = _unit_parts(config, output)
        else:
            parts = _image_parts(config, runs, t2u, output, log, stack)
        if output.sound is not None:
            vocoder = output.sound.vocoder
            log(f"vocoder {vocoder.name}: {vocoder.num_units} units, on {vocoder.device}")
        for batch in parts.batches:
            output.add(batch)
    output.finish(parts.title, parts.about)
    return SpeakResult(
        out=config.out,
        num_inputs=parts.num_inputs,
        num_spoken=len(output.items),
        num_rejects=len(output.rejects),
        num_without_picture=parts.num_without,
        num_units=sum(item.num_units for item in output.items),
        speech_s=round(sum(item.duration_s for item in output.items), 2),
        elapsed_s=round(time.perf_counter() - start_s, 2),
    )


def _runs(config: SpeakConfig) -> list[Run]:
    """The captioners of `--run` and `--text`.

    Raises:
        ValueError: A run is missing or does not fit, or a setting needs speech.
    """
    runs = read_runs(config.run or (BUNDLED_TEXT,))
    if config.text and not any(run.target == "text" for run in runs):
        runs = read_runs([*config.run, BUNDLED_TEXT])
    if runs[0].target == "text" and _t2u_name(config) is None:
        given = {
            "--transcribe": config.transcribe,
            "--vocoder": config.vocoder != "compact",
            "--speaker": config.speaker is not None,
        }
        for flag, is_given in given.items():
            if is_given:
                raise ValueError(
                    f"{flag} needs speech, and the run {runs[0].name} generates text; add --t2u"
                    f" {BUNDLED_T2U}, or a --run of im2sp-train --target speech"
                )
    return runs


def _t2u_name(config: SpeakConfig) -> str | None:
    """Name of the text-to-unit model."""
    return config.t2u or (None if config.run else BUNDLED_T2U)


def _sound(config: SpeakConfig, runs: Sequence[Run], t2u: TextToUnits | None) -> Sound | None:
    """The vocoder and recognizer; None for captioners of text only."""
    if runs and runs[0].target == "text" and t2u is None:
        return None
    vocoder = load_vocoder(config.vocoder, device=config.device)
    recognizer = load_recognizer(config.asr, config.device) if config.transcribe else None
    return Sound(vocoder, recognizer, config.speaker)


def _unit_parts(config: SpeakConfig, output: Output) -> _Parts:
    """Clips of a file of units."""
    assert config.units is not None
    assert output.sound is not None
    vocoder = output.sound.vocoder
    found = read_units(config.units, config.split, config.limit)
    vocoder.check_units(found.num_units, found.fingerprint, str(config.units))
    output.sound.check_durations(any(clip.durations is None for clip in found.clips))
    output.rejects += found.rejects
    clips: list[Clip] = []
    for clip in found.clips:
        if max(clip.units) < vocoder.num_units:
            clips.append(clip)
        else:
            reason = (
                f"unit {max(clip.units)}, but the vocoder {vocoder.name} has units 0 to"
                f" {vocoder.num_units - 1}"
            )
            output.rejects.append({"file": clip.key, "reason": reason})
    stems = file_stems([clip.key for clip in clips])
    output.begin(f"{stem}.wav" for stem in stems)
    spoken = [Described(clip=clip, stem=stem) for clip, stem in zip(clips, stems, strict=True)]
    return _Parts(
        title=f"Speech units of {config.units.name} as sound",
        about=[f"Synthesized by the vocoder {vocoder.name}."],
        batches=_batches(spoken, "synthesize", is_quiet=config.quiet),
        num_inputs=len(found.clips) + len(found.rejects),
    )


def _image_parts(
    config: SpeakConfig,
    runs: Sequence[Run],
    t2u: TextToUnits | None,
    output: Output,
    log: Log,
    stack: ExitStack,
) -> _Parts:
    """Descriptions of images, which are decoded by a pool on the stack."""
    vocoder = None if output.sound is None else output.sound.vocoder
    if output.sound is not None:
        output.sound.check_durations(True)
    found = list_images(config.pictures, config.image_root, config.split, config.limit)
    pool = stack.enter_context(
        DecodePool(
            num_workers=min(2, len(found.items)) or 1,
            view=runs[0].image_tokenizer["view"],
            max_pixels=DEFAULT_MAX_PIXELS,
            thumbnail_px=SHOWN_PX,
        )
    )
    pool.start()
    captioner = Captioner(
        runs,
        t2u=t2u,
        image_tokenizer=config.image_tokenizer,
        codebook=config.codebook,
        num_beams=config.num_beams,
        max_tokens=config.max_tokens,
        device=config.device,
    )
    if vocoder is not None:
        vocoder.check_units(captioner.num_units, captioner.speech_fingerprint, captioner.units_of)
    for run in runs:
        log(
            f"run {run.name}: {run.target}, step {run.step:,}, images through"
            f" {captioner.input.name}, view {captioner.view.name}"
        )
    if t2u is not None:
        log(f"text-to-unit model {t2u.name}: {t2u.num_units} units")
    output.rejects += found.rejects
    stems = file_stems([item.key for item in found.items])
    output.begin(f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES)
    return _Parts(
        title="Images described by " + " and ".join(run.name for run in runs),
        about=_about(runs, t2u, vocoder),
        batches=_described(captioner, pool, found, stems, output, is_quiet=config.quiet),
        num_inputs=len(found.items) + len(found.rejects),
        num_without=found.num_without,
    )


def _about(runs: Sequence[Run], t2u: TextToUnits | None, vocoder: Vocoder | None) -> list[str]:
    """Sentences of the page about its contents."""
    what = "pixels" if runs[0].sees_pixels else "units"
    lines = [f"The descriptions are generated from an image's {what} alone, and may be wrong."]
    sounded = f", and synthesized by the vocoder {vocoder.name}" if vocoder else ""
    for run in runs:
        if run.target == "text":
            lines.append(f"Sentence: by the captioner {run.name} of text, step {run.step:,}.")
        else:
            lines.append(
                f"Sound: by the captioner {run.name} of speech, step {run.step:,}{sounded}."
            )
    if t2u is not None:
        lines.append(
            f"Sound: the sentence, in units by the text-to-unit model {t2u.name}{sounded}."
        )
    if len(runs) > 1:
        lines.append("The two captioners are independent, so sound and sentence may differ.")
    return lines


def _described(
    captioner: Captioner,
    pool: DecodePool,
    images: Images,
    stems: Sequence[str],
    output: Output,
    *,
    is_quiet: bool,
) -> Iterator[list[Described]]:
    """Batches of descriptions of images; refused images are rejects."""
    named = list(zip(images.items, stems, strict=True))
    decoded = pool.decode(images.items)
    for batch in _batches(named, "describe", is_quiet=is_quiet):
        found = [(item, stem, next(decoded)) for item, stem in batch]
        output.rejects += [
            {"file": item.name, "reason": image.reason} for item, _, image in found if image.reason
        ]
        read = [(item, stem, image) for item, stem, image in found if not image.reason]
        descriptions = captioner.describe(
            [image.pixels for _, _, image in read if image.pixels is not None]
        )
        described: list[Described] = []
        for (item, stem, image), description in zip(read, descriptions, strict=True):
            if output.sound is not None and not description.units:
                reason = "the model generated no units (EOS came first)"
                output.rejects.append({"file": item.name, "reason": reason})
                continue
            described.append(
                Described(
                    clip=Clip(key=item.key, units=description.units),
                    stem=stem,
                    text=description.text,
                    captions=(*texts_of(item.utterances), *item.captions),
                    thumbnail=image.thumbnail,
                    decoded=description.decoded,
                    is_cut=captioner.view.keep_shape,
                )
            )
        yield described


def _batches(items: Sequence[_T], what: str, *, is_quiet: bool) -> Iterator[list[_T]]:
    """Yield batches of items, with a progress bar."""
    bar = tqdm(total=len(items), desc=what, disable=is_quiet, file=sys.stderr)
    with bar:
        for start in range(0, len(items), BATCH_CLIPS):
            batch = list(items[start : start + BATCH_CLIPS])
            yield batch
            bar.update(len(batch))
