"""Chain of evaluation stages: generate, synthesize, recognize, predict opinions.

Stages (see `evaluation.stages`) and their files: `said` (generated units or text of each image),
`likelihood` (under the unit language model), `spoken` (synthesized clips, for speech), `heard`
(transcripts of the recognizer), `mos-..` (opinions by each predictor).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import soundfile as sf
from tqdm import tqdm

from im2sp.shards import ShardDataset, UnitColumn
from im2sp.shards.files import atomic_file
from im2sp.tools.engines.asr import RATE_HZ, load_recognizer
from im2sp.tools.engines.flite import speak
from im2sp.tools.engines.mos import DNSMOS, load_predictor
from im2sp.tools.evaluation.config import EvaluateConfig, Topline
from im2sp.tools.evaluation.samples import Judged, PixelImages
from im2sp.tools.evaluation.stages import Row, StageFolder

TRANSCRIPTION, SPEECH_LM_SCORE = "transcription", "SpeechLMScore"
SPEECH_DIR = "speech"
FLITE = "flite"
BATCH_IMAGES = 8


@dataclass(kw_only=True)
class Chain:
    """Results of the stages; rows are in the samples' order."""

    kind: Literal["speech", "text"]
    generated: list[Row]
    recognized: list[Row] | None
    mos: dict[str, list[Row]]
    """Rows of each predictor of opinions, by its name."""
    about: dict[str, Any]
    """Names and fingerprints of the models used."""
    missing: dict[str, str]
    """Part that failed, such as "transcription" or "DNSMOS" -> reason."""
    likelihoods: list[Row] | None = None
    """Log-likelihoods under the unit language model, of the generated units and the references."""


def run_chain(
    config: EvaluateConfig,
    dataset: ShardDataset,
    items: Sequence[Judged],
    folder: StageFolder,
    images: PixelImages | None = None,
) -> Chain:
    """Run the stages that are not complete yet; `images` are those of a run on pixels.

    Raises:
        ValueError: Weights or packages are missing or do not fit the dataset.
    """
    speaker = _speaker(config, dataset, images)
    inputs = {
        "shards": dataset.manifest.sha256,
        "split": dataset.split,
        "keys": [item.sample.key for item in items],
        **speaker.inputs,
    }

    def bar(rows: Iterator[Row], what: str, start: int) -> Iterator[Row]:
        return iter(tqdm(rows, desc=what, total=len(items), initial=start, disable=config.quiet))

    generated = folder.rows(
        "said",
        inputs,
        len(items),
        lambda start: bar(speaker.generate(items[start:]), "generate", start),
    )
    chain = Chain(
        kind=speaker.kind,
        generated=generated,
        recognized=None,
        mos={},
        about=speaker.inputs,
        missing={},
    )
    if config.speech_lm is not None:
        _likelihoods(config, dataset, items, chain, folder, bar)
    if speaker.kind == "text" and config.cascade is None and config.topline is None:
        return chain
    voice = _voice(config, dataset, speaker.kind)
    chain.about |= voice.inputs
    inputs = {"said": folder.sha256("said"), **voice.inputs}
    spoken = folder.rows(
        "spoken",
        inputs,
        len(items),
        lambda start: bar(_spoken(generated, start, voice, folder.folder), "synthesize", start),
    )
    _recognize_and_judge(config, chain, spoken, folder, bar)
    return chain


def _likelihoods(
    config: EvaluateConfig,
    dataset: ShardDataset,
    items: Sequence[Judged],
    chain: Chain,
    folder: StageFolder,
    bar: Any,
) -> None:
    """Run the stage `likelihood` on generated units."""
    from im2sp.tools.engines.speech_lm import load_speech_lm

    if chain.kind != "speech":
        chain.missing[SPEECH_LM_SCORE] = "text was generated, which has no speech units"
        return
    assert config.speech_lm is not None
    try:
        model = load_speech_lm(config.speech_lm, config.device)
    except ValueError as error:
        chain.missing[SPEECH_LM_SCORE] = " ".join(str(error).split())
        return
    found = (dataset.manifest.speech_tokenizer or {}).get("fingerprint")
    if model.speech_fingerprint is not None and found not in (None, model.speech_fingerprint):
        chain.missing[SPEECH_LM_SCORE] = (
            f"{config.speech_lm} was trained on units of the speech tokenizer"
            f" {model.speech_fingerprint[:12]}.., those of {dataset.path} are of {found[:12]}.."
        )
        return
    about = {"speech_lm": model.name, "speech_lm_fingerprint": model.fingerprint}
    chain.about |= about

    def rows(start: int) -> Iterator[Row]:
        for row, item in zip(chain.generated[start:], items[start:], strict=True):
            references = [units.tolist() for units in item.sample.speech_units if len(units)]
            yield {
                "key": row["key"],
                "generated": model.log_likelihood(row["units"]) if row["units"] else None,
                "references": [model.log_likelihood(units) for units in references],
            }

    inputs = {"said": folder.sha256("said"), **about}
    chain.likelihoods = folder.rows(
        "likelihood", inputs, len(items), lambda start: bar(rows(start), "likelihood", start)
    )


def _recognize_and_judge(
    config: EvaluateConfig, chain: Chain, spoken: list[Row], folder: StageFolder, bar: Any
) -> None:
    """Run the stages `heard` and `mos-..` on the synthesized clips; one that fails is `missing`."""
    stages: dict[str, Callable[..., None]] = {TRANSCRIPTION: _recognize}
    for name in config.mos:
        stages["DNSMOS" if name == DNSMOS else name] = partial(_judge, name)
    for name, run in stages.items():
        try:
            run(config, chain, spoken, folder, bar)
        except (ValueError, RuntimeError) as error:
            chain.missing[name] = " ".join(str(error).split())


def _recognize(
    config: EvaluateConfig, chain: Chain, spoken: list[Row], folder: StageFolder, bar: Any
) -> None:
    recognizer = load_recognizer(config.asr, config.device)
    recognized = {"asr": recognizer.name, "asr_fingerprint": recognizer.fingerprint}
    chain.about |= recognized

    def transcripts(start: int) -> Iterator[Row]:
        for row in spoken[start:]:
            samples = read_clip(folder.folder, row)
            yield {"key": row["key"], "text": recognizer.transcribe(samples)}

    inputs = {"spoken": folder.sha256("spoken"), **recognized}
    chain.recognized = folder.rows(
        "heard", inputs, len(spoken), lambda start: bar(transcripts(start), "recognize", start)
    )


def _judge(
    predictor: str,
    config: EvaluateConfig,
    chain: Chain,
    spoken: list[Row],
    folder: StageFolder,
    bar: Any,
) -> None:
    judge = load_predictor(predictor, config.device)

    def mos(start: int) -> Iterator[Row]:
        for row in spoken[start:]:
            samples = read_clip(folder.folder, row)
            yield {"key": row["key"], "scores": judge.score(samples) if len(samples) else None}

    inputs = {"spoken": folder.sha256("spoken"), "mos": judge.name, "weights": judge.fingerprint}
    chain.mos[judge.name] = folder.rows(
        f"mos-{judge.name.lower()}",
        inputs,
        len(spoken),
        lambda start: bar(mos(start), f"predict {judge.name}", start),
    )


def read_clip(folder: Path, row: Row) -> np.ndarray:
    """(T,) float32 samples of a row of `spoken`; empty if nothing was synthesized."""
    if row["file"] is None:
        return np.zeros(0, np.float32)
    samples, rate_hz = sf.read(folder / row["file"], dtype="float32")
    assert rate_hz == RATE_HZ
    return samples


class _Speaker(Protocol):
    """Source of the units or text to synthesize."""

    kind: Literal["speech", "text"]
    inputs: dict[str, Any]

    def generate(self, items: Sequence[Judged]) -> Iterator[Row]: ...


class _Voice(Protocol):
    """Synthesizer of units or text."""

    inputs: dict[str, Any]

    def speak(self, row: Row) -> np.ndarray: ...


def _speaker(config: EvaluateConfig, dataset: ShardDataset, images: PixelImages | None) -> _Speaker:
    if config.topline is not None:
        return _Topline(config.topline)
    return _Model(config, dataset, images)


class _Topline:
    """Units or captions of the dataset itself: an upper bound for models."""

    def __init__(self, topline: Topline) -> None:
        self.kind: Literal["speech", "text"] = "speech" if topline == "units" else "text"
        self.inputs: dict[str, Any] = {"topline": topline}

    def generate(self, items: Sequence[Judged]) -> Iterator[Row]:
        for item in items:
            row: Row = {"key": item.sample.key}
            if self.kind == "text":
                row["text"] = item.text
            else:
                row["units"] = item.sample.speech_units[0].tolist()
                if item.sample.durations is not None:
                    row["durations"] = item.sample.durations[0].tolist()
            yield row


class _Model:
    """Generations of a trained model."""

    def __init__(
        self, config: EvaluateConfig, dataset: ShardDataset, images: PixelImages | None
    ) -> None:
        from im2sp.pipeline.tensors import state_fingerprint
        from im2sp.trainer import load_model
        from im2sp.trainer.export import text_model_path
        from im2sp.trainer.text import read_text_model
        from im2sp.trainer.transfer import check_image, unit_columns_of

        assert config.run is not None
        self._config = config
        self._model = load_model(config.run, config.codebook, device=config.device)
        kind, columns = self._model.config.vocabulary.kind, unit_columns_of(config.run)
        if kind not in ("speech", "text"):
            raise ValueError(
                f"{config.run}: trained with --target {columns.get('target', kind)}, which makes"
                " neither captions nor speech; give a run of im2sp-train --target speech or text"
            )
        if not self._model.config.has_image:
            raise ValueError(
                f"{config.run}: a language model without images cannot describe any; give it as"
                " --speech-lm"
            )
        self._images, self._image_column = images, columns.get("image", "image_units")
        if images is None:
            image = dataset.columns.get(self._image_column)
            assert isinstance(image, UnitColumn)
            check_image(image, self._model, str(config.run))
        self.kind: Literal["speech", "text"] = kind
        self._max_tokens = min(config.max_tokens, self._model.config.max_positions)
        self.inputs: dict[str, Any] = {
            "run": Path(config.run).name,
            "run_fingerprint": state_fingerprint(self._model),
            "num_beams": config.num_beams,
            "max_tokens": self._max_tokens,
            **({} if images is None else {"image_encoder": images.name}),
        }
        self._text_model = None
        if self.kind == "text":
            self._text_model = read_text_model(text_model_path(config.run))

    def generate(self, items: Sequence[Judged]) -> Iterator[Row]:
        import torch

        from im2sp.trainer import generate

        device = next(self._model.parameters()).device
        for start in range(0, len(items), BATCH_IMAGES):
            batch = items[start : start + BATCH_IMAGES]
            if self._images is not None:
                images = self._images.encode([item.sample.key for item in batch])
            else:
                units = np.stack([item.sample[self._image_column] for item in batch])
                images = torch.from_numpy(units.astype(np.int64))
            settings = (self._config.num_beams, self._max_tokens)
            found = generate(self._model, images.to(device), *settings)
            for item, ids in zip(batch, found, strict=True):
                text = None if self._text_model is None else self._text_model.decode(ids)
                row = {"units": ids} if text is None else {"text": text}
                yield {"key": item.sample.key, **row}


class _UnitVoice:
    """The vocoder."""

    def __init__(self, config: EvaluateConfig, dataset: ShardDataset) -> None:
        from im2sp.pipeline import load_vocoder

        self._vocoder = load_vocoder(config.vocoder, device=config.device)
        recorded = dataset.manifest.speech_tokenizer or {}
        num_units, column = recorded.get("num_units"), dataset.columns.get("speech_units")
        if num_units is None and dataset.schema.version > 1 and isinstance(column, UnitColumn):
            num_units = column.num_codes
        self._vocoder.check_units(num_units, recorded.get("fingerprint"), "the shards' speech")
        self._speaker = 0 if self._vocoder.num_speakers else None
        self.inputs: dict[str, Any] = {
            "vocoder": self._vocoder.name,
            "vocoder_fingerprint": self._vocoder.fingerprint,
        }

    def speak(self, row: Row) -> np.ndarray:
        durations = row.get("durations")
        return self._vocoder.synthesize(row["units"], durations, self._speaker)


class _TextToUnitVoice(_UnitVoice):
    """A text-to-unit model and the vocoder."""

    def __init__(self, config: EvaluateConfig, dataset: ShardDataset, name: str) -> None:
        from im2sp.pipeline import load_text_to_units

        super().__init__(config, dataset)
        self._t2u = load_text_to_units(name, device=config.device)
        whose = f"the text-to-unit model {self._t2u.name}"
        self._vocoder.check_units(self._t2u.num_units, self._t2u.speech_fingerprint, whose)
        self.inputs |= {"cascade": self._t2u.name, "cascade_fingerprint": self._t2u.fingerprint}

    def speak(self, row: Row) -> np.ndarray:
        return super().speak({"units": self._t2u.units(row["text"])})


class _FliteVoice:
    """flite."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._voice = config.voice
        self.inputs: dict[str, Any] = {"cascade": FLITE, "voice": config.voice}

    def speak(self, row: Row) -> np.ndarray:
        if not any(c.isalnum() for c in row["text"]):
            return np.zeros(0, np.float32)
        return speak(row["text"], self._voice).samples.astype(np.float32) / 32768


def _voice(config: EvaluateConfig, dataset: ShardDataset, kind: str) -> _Voice:
    if kind == "speech":
        return _UnitVoice(config, dataset)
    if config.cascade in (None, FLITE):
        return _FliteVoice(config)
    return _TextToUnitVoice(config, dataset, config.cascade)


def _spoken(generated: list[Row], start: int, voice: _Voice, folder: Path) -> Iterator[Row]:
    """Synthesize rows of `said` from `start` on; each clip is written before its row is yielded."""
    (folder / SPEECH_DIR).mkdir(exist_ok=True)
    for number, row in enumerate(generated[start:], start):
        samples = voice.speak(row)
        name = f"{SPEECH_DIR}/{number:06d}.wav" if len(samples) else None
        if name is not None:
            with atomic_file(folder / name) as file:
                sf.write(file, samples, RATE_HZ, "PCM_16", format="WAV")
        yield {"key": row["key"], "file": name, "duration_s": len(samples) / RATE_HZ}
