"""Spoken Flickr8k: all captions of a Karpathy file, synthesized by flite, as units in shards.

    python tools/flickr8k_spoken.py flickr8k/dataset_flickr8k.json --out shards/spoken

Each caption has one voice, assigned in turn by its `sentid`. During the job, the speech is in
`--out` (about 4 GB for 35,000 captions), in the layout of Flickr8kAudio, and is removed at the end;
`--keep-audio FOLDER` stores and keeps it there. Run the same command again to resume an interrupted
job: nothing is synthesized or encoded twice.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import soundfile as sf
import tyro
from tqdm import tqdm

from im2sp.pipeline.image_tokenizer.tokenizer import load_image_tokenizer
from im2sp.pipeline.job.run import JobConfig, run_job
from im2sp.pipeline.sources.flickr8k_audio import WAVS
from im2sp.pipeline.sources.items import read_json_list
from im2sp.pipeline.speech_tokenizer.tokenizer import load_speech_tokenizer
from im2sp.pipeline.summary import summary
from im2sp.shards import MANIFEST_NAME
from im2sp.shards.command_line import run_command
from im2sp.shards.errors import log
from im2sp.shards.files import atomic_file, read_text
from im2sp.tools.engines.flite import RATE_HZ, VOICES, FliteError, find_flite, speak

AUDIO_NAME = ".spoken"
RECORD_NAME = "spoken.json"
_EXPECTED = 'a Karpathy file, {"images": [{"filename", "sentences": [{"raw", "sentid"}]}]}'
CAPTIONS_NAME, SPEAKERS_NAME = "wav2capt.txt", "wav2spk.txt"


@dataclass(frozen=True, kw_only=True)
class SpokenConfig:
    """Synthesize all captions of a Karpathy file; write images and speech as units into shards.

    Run the same command again to resume. Exit code: 0 done; 1 failed; 2 wrong usage.
    """

    captions: tyro.conf.Positional[Path]
    """Karpathy file, such as dataset_flickr8k.json."""
    out: Path
    """Folder of the dataset; created if it does not exist."""
    image_root: Path | None = None
    """Folder or .tar of the images; by default the folder of the Karpathy file."""
    voices: tuple[str, ...] = VOICES
    """Voices of flite, assigned in turn by the captions' sentid."""
    keep_audio: Path | None = None
    """Folder for the speech, in the layout of Flickr8kAudio; by default it is removed."""
    image_tokenizer: str = "compact"
    """As for im2sp-tokenize."""
    speech_tokenizer: str = "compact"
    """As for im2sp-tokenize."""
    kmeans: Path | None = None
    """As for im2sp-tokenize."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoders."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""
    num_workers: int = os.cpu_count() or 1
    """Number of flite processes, and of decoding processes."""
    overwrite: bool = False
    """Remove the dataset or unfinished job in --out first."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        unknown = [voice for voice in self.voices if voice not in VOICES]
        if unknown or not self.voices:
            raise ValueError(
                f"--voices is {' '.join(self.voices) or 'empty'}; expected some of"
                f" {', '.join(VOICES)}"
            )
        if self.num_workers < 1:
            raise ValueError(f"--num-workers is {self.num_workers}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A caption to synthesize."""

    wav: str
    """File name, `<image stem>_<place>.wav`."""
    image: str
    """File name of the image."""
    place: int
    """Index of the caption among those of its image."""
    text: str
    """Text of the caption."""
    voice: str
    """Voice of flite."""


def read_lines(path: Path, voices: Sequence[str]) -> list[Line]:
    """Read the captions of a Karpathy file, each with its voice.

    Raises:
        ValueError: It is not such a file, or a caption has no `sentid`.
    """
    images = read_json_list(path, "images", _EXPECTED)
    try:
        return [
            Line(
                wav=f"{Path(image['filename']).stem}_{place}.wav",
                image=Path(image["filename"]).name,
                place=place,
                text=sentence["raw"],
                voice=voices[int(sentence["sentid"]) % len(voices)],
            )
            for image in images
            for place, sentence in enumerate(image["sentences"])
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error!r}; expected {_EXPECTED}") from None


def speak_lines(
    lines: Sequence[Line], folder: Path, *, num_workers: int = 1, quiet: bool = False
) -> list[str]:
    """Synthesize missing clips into a folder in the layout of Flickr8kAudio.

    Args:
        lines: Captions.
        folder: Output folder of `wavs/`, `wav2capt.txt` and `wav2spk.txt`.
        num_workers: Parallel flite processes.
        quiet: No progress bar.

    Returns:
        Names of the clips without speech from flite; the job counts them as missing.

    Raises:
        ValueError: The folder contains the speech of other lines.
        FliteError: flite is missing.
    """
    (folder / WAVS).mkdir(parents=True, exist_ok=True)
    _check_record(lines, folder)
    there = set(os.listdir(folder / WAVS))
    left = [line for line in lines if line.wav not in there]
    if left:
        find_flite()
    threads = ThreadPoolExecutor(num_workers)
    try:
        bar = tqdm(
            threads.map(lambda line: _speak_one(line, folder), left),
            total=len(lines),
            initial=len(lines) - len(left),
            desc="speak",
            unit=" captions",
            disable=quiet,
            dynamic_ncols=True,
        )
        mute = [wav for wav in bar if wav is not None]
    finally:
        # An interrupt waits only for the clips in progress.
        threads.shutdown(cancel_futures=True)
    pairs = "".join(f"{line.wav} {line.image} #{line.place}\n" for line in lines)
    speakers = "".join(f"{line.wav} {line.voice}\n" for line in lines)
    for name, content in ((CAPTIONS_NAME, pairs), (SPEAKERS_NAME, speakers)):
        with atomic_file(folder / name) as file:
            file.write(content.encode())
    return mute


def _check_record(lines: Sequence[Line], folder: Path) -> None:
    """Record the captions and voices of the folder; refuse a folder of others."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps([line.wav, line.text, line.voice]).encode())
    record = json.dumps({"num_captions": len(lines), "sha256": digest.hexdigest()}) + "\n"
    path = folder / RECORD_NAME
    if path.exists():
        if read_text(path) != record:
            raise ValueError(
                f"{folder}: contains other captions or voices; give another folder, or remove it"
            )
    elif any((folder / WAVS).iterdir()):
        raise ValueError(
            f"{folder / WAVS}: has files but no {path.name} beside it that identifies them;"
            " give another folder"
        )
    with atomic_file(path) as file:
        file.write(record.encode())


def _speak_one(line: Line, folder: Path) -> str | None:
    """Write one clip atomically; return its name if flite generates no speech."""
    try:
        spoken = speak(line.text, line.voice)
    except FliteError:
        return line.wav
    with atomic_file(folder / WAVS / line.wav) as file:
        sf.write(file, spoken.samples, RATE_HZ, format="WAV", subtype="PCM_16")
    return None


def make_dataset(config: SpokenConfig) -> str:
    """Synthesize, tokenize, clean up.

    Returns:
        Text of the summary.
    """
    lines = read_lines(config.captions, config.voices)
    audio = config.keep_audio or config.out / AUDIO_NAME
    if (config.out / MANIFEST_NAME).exists() and not config.overwrite and not audio.exists():
        return f"{config.out}: a complete dataset exists; nothing done (--overwrite replaces it)"
    mute = speak_lines(lines, audio, num_workers=config.num_workers, quiet=config.quiet)
    for wav in mute:
        log(f"no speech from flite for {wav}; skipped")
    job = JobConfig(
        source=config.captions,
        dataset_dir=config.out,
        image_root=config.image_root,
        audio_root=audio,
        num_workers=config.num_workers,
        overwrite=config.overwrite,
        quiet=config.quiet,
    )
    result = run_job(
        job,
        lambda: load_image_tokenizer(
            config.image_tokenizer, device=config.device, precision=config.precision
        ),
        lambda: load_speech_tokenizer(
            config.speech_tokenizer,
            config.kmeans,
            device=config.device,
            precision=config.precision,
        ),
    )
    if config.keep_audio is None:
        shutil.rmtree(audio)
    return summary(job.sources_name, config.out, result)


def main(args: list[str] | None = None) -> None:
    """Run the command; always leaves by SystemExit."""
    resume = "run the same command again to resume"
    sys.exit(
        run_command(
            "flickr8k_spoken",
            SpokenConfig,
            _run,
            args,
            out=lambda config: config.out,
            resume=resume,
        )
    )


def _run(config: SpokenConfig) -> None:
    text = make_dataset(config)
    if not config.quiet:
        print(text)


if __name__ == "__main__":
    main()
