"""Measure everything that runs on a GPU, in one run of a few minutes, as a Markdown table.

    python tools/bench/gpu.py > gpu.md

Nothing is downloaded: weights are random or bundled, data is generated or from `docs/demo-images`.
Rows are printed as JSON as they come, then all as a table. A measurement that fails becomes a row
with its error; one that would begin after `--minutes` becomes a row that says so. `--device cpu
--quick` runs all of it at small sizes, to test this program.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from im2sp.pipeline import load_image_tokenizer, load_speech_tokenizer
from im2sp.shards.command_line import run_command
from im2sp.tools.bench import encode, generate, job, speech
from im2sp.tools.bench.timing import check_cases, clock_of, machine, medians, table, take_turns
from im2sp.tools.bench.train import make_batch, matrix_rate, model_flops
from im2sp.trainer.generation import generate as generate_ids
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import preset_config
from im2sp.trainer.vocabulary import Vocabulary

IMAGES = Path(__file__).resolve().parents[2] / "docs/demo-images"


@dataclass(frozen=True, kw_only=True)
class BenchGpuConfig:
    """Measure training, generation and tokenizing on a GPU."""

    device: str = "cuda"
    """torch device."""
    quick: bool = False
    """Small sizes, to test this program."""
    minutes: float = 6.0
    """Measurements that would begin later are left out."""
    only: tuple[str, ...] = ()
    """Names of the measurements to run; by default all."""

    def __post_init__(self) -> None:
        """Refuse unknown measurements."""
        check_cases(self.only, MEASUREMENTS)


Row = dict[str, Any]


def _row(case: str, value: object, unit: str, note: str = "") -> Row:
    return {"case": case, "value": value, "unit": unit, "note": note}


def measure_equality(config: BenchGpuConfig) -> Iterator[Row]:
    """Shares of ids in float32 that are those of the CPU."""
    devices = (config.device, "cpu")
    pixels = encode.photographs(encode.Settings(num_images=2 if config.quick else 64))
    images = [load_image_tokenizer("compact", device=one).encode(pixels) for one in devices]
    yield _row("image units, compact, fp32", _share(*images), "equal to the CPU's")
    clips = speech.make_clips(speech.SpeechSettings(num_clips=3, clip_s=2.0))
    tokenizers = [load_speech_tokenizer("compact", device=one) for one in devices]
    units = [torch.from_numpy(np.concatenate(one.encode_batch(clips))) for one in tokenizers]
    yield _row("speech units, compact, fp32", _share(*units), "equal to the CPU's")
    model = generate.make_model("tiny" if config.quick else "small", torch.device("cpu"))
    image = torch.randint(0, model.config.num_codes, (2, *model.config.shape))
    for num_beams in (1, 5):
        ids = []
        for device in devices:
            rows = generate_ids(model.to(device), image.to(device), num_beams, 20)
            ids.append(torch.tensor(rows))
        yield _row(f"generated ids, {num_beams} beams, fp32", _share(*ids), "equal to the CPU's")


def _share(a: Tensor, b: Tensor) -> float:
    return round((a == b).float().mean().item(), 6)


def measure_training(config: BenchGpuConfig, *, compiled: bool) -> Iterator[Row]:
    """Loss and gradients in bfloat16, of images with five captions of 110 units or 14 words."""
    cases = [(32, 0.0), (64, 0.0), (128, 0.0), (64, 0.1)]
    if compiled:
        cases = [(64, 0.1), (128, 0.0)]  # compilation takes most of the time
    speech = Vocabulary(kind="speech", num_ids=200)
    for num_images, dropout in [(2, 0.1)] if config.quick else cases:
        yield _training_row(config, num_images, dropout, speech, compiled=compiled)
    if not compiled:  # as many words as GIT has
        num_images, num_words = (2, 40) if config.quick else (128, 30_519)
        words = Vocabulary(kind="text", num_ids=num_words)
        yield _training_row(config, num_images, 0.0, words, compiled=False)


def _training_row(
    config: BenchGpuConfig,
    num_images: int,
    dropout: float,
    vocabulary: Vocabulary,
    *,
    compiled: bool,
) -> Row:
    device, clock = torch.device(config.device), clock_of(config.device)
    num_ids = 6 if config.quick else 110 if vocabulary.kind == "speech" else 14
    preset = "tiny" if config.quick else "base"
    sizes = preset_config(preset, vocabulary)
    sizes = replace(sizes, dropout=dropout, attention_dropout=dropout)
    torch.manual_seed(0)
    model = Im2SpModel(sizes, torch.randn(sizes.num_codes, sizes.code_width)).to(device)
    batch = [one.to(device) for one in make_batch(sizes, num_images, num_ids)[:2]]
    loss_of: Callable[..., Tensor] = model.loss
    if compiled:
        backend = "eager" if config.quick else "inductor"
        loss_of = torch.compile(loss_of, dynamic=False, backend=backend)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(*batch, None)
        loss.backward()
        model.zero_grad()

    start_s = clock()
    step()
    note = f"first step {clock() - start_s:.0f} s"
    num_rounds = 1 if config.quick else 10
    seconds = medians(take_turns({"": step}, num_rounds, clock=clock, num_warmups=1))[""]
    num_texts, length = len(batch[1]), batch[1].shape[1] - 1
    note += f", then {1000 * seconds:.1f} ms"
    if device.type == "cuda":
        rate = matrix_rate(device)
        share = model_flops(sizes, num_images, num_texts, length) / seconds / rate
        peak_gib = torch.cuda.max_memory_allocated(device) / 2**30
        note += f"; {share:.3f} of {rate / 1e12:.0f} TFLOPS; {peak_gib:.1f} GiB"
        torch.cuda.reset_peak_memory_stats(device)
    name = f"{preset}, {num_images} images, vocabulary {vocabulary.size}, bf16, dropout {dropout:g}"
    name += ", compiled" * compiled
    return _row(name, round(num_texts * length / seconds), "tokens/s", note)


def measure_generation(config: BenchGpuConfig) -> Iterator[Row]:
    """Generation against transformers with the same weights; the ids must be equal."""
    preset, max_tokens, rounds = ("tiny", 5, 1) if config.quick else ("small", 110, 3)
    model = generate.make_model(preset, torch.device(config.device))
    for batch_size in (2,) if config.quick else (1, 8, 64):
        for num_beams in (1, 5):
            row = generate.measure(model, batch_size, num_beams, max_tokens, rounds)
            name = f"{preset}, {batch_size} images, {num_beams} beams, fp32"
            note = f"{row['ratio']} times transformers"
            yield _row(name, row["ours, units/s"], "units/s", note)


def measure_image_encoder(config: BenchGpuConfig) -> Iterator[Row]:
    """Images to units, from tensors on the CPU, against the published arithmetic."""
    settings = encode.Settings(device=config.device, num_images=512)
    if config.quick:
        settings = replace(settings, image_size_px=64, num_images=2, repeats=1)
    settings = replace(settings, size="tiny" if config.quick else "base")
    for size, weights in ((settings.size, ""), ("compact", "compact")):
        for row in encode.run(replace(settings, weights=weights)):
            note = f"{row['speedup']} times plain fp32, {row['equal_units']} equal to it"
            yield _row(f"{size}, {row['case']}", row["images_per_s"], "images/s", note)


def measure_job(config: BenchGpuConfig) -> Iterator[Row]:
    """The whole tokenize job on JPEG files, beside its wall-clock time with start and end."""
    sources = sorted(IMAGES.glob("*.jpg"))
    num_images = len(sources) if config.quick else 6000
    cases = [("compact", "fp32"), ("compact", "bf16"), ("base", "bf16")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        for i in range(num_images):
            shutil.copy(sources[i % len(sources)], folder / f"{i:06d}.jpg")
        for size, precision in cases[:1] if config.quick else cases:
            weights = job.weights_file(size, size if size == "compact" else "", Path(name))
            begin_s = time.perf_counter()
            result = job.run_once(folder, weights, precision, config.device)
            wall_s = time.perf_counter() - begin_s
            rate = round(result["num_encoded"] / result["encode_s"], 1)
            note = f"{num_images:,} images, {wall_s:.1f} s with start and end"
            yield _row(f"{size}, {precision}", rate, "images/s", note)


def measure_speech_encoder(config: BenchGpuConfig) -> Iterator[Row]:
    """Clips to units with a HuBERT of random weights, against transformers clip by clip."""
    settings = speech.SpeechSettings(device=config.device, num_clips=128)
    if config.quick:
        settings = replace(settings, size="tiny", num_clips=3, clip_s=1.0, num_units=20, repeats=1)
    for row in speech.run(settings):
        note = f"{row['speedup']} times plain fp32, {row['equal_units']} equal to it"
        name = f"HuBERT {settings.size}, {row['case']}"
        yield _row(name, row["audio_hours_per_hour"], "hours of audio/h", note)


MEASUREMENTS: dict[str, Callable[[BenchGpuConfig], Iterator[Row]]] = {
    "equality": measure_equality,
    "training": partial(measure_training, compiled=False),
    "generation": measure_generation,
    "image encoder": measure_image_encoder,
    "job": measure_job,
    "speech encoder": measure_speech_encoder,
    "compiled training": partial(measure_training, compiled=True),
}


def measure(config: BenchGpuConfig) -> Iterator[Row]:
    """Rows of all chosen measurements, in turn."""
    begin_s = time.monotonic()
    for name in config.only or MEASUREMENTS:
        rows = MEASUREMENTS[name](config)
        while True:
            if time.monotonic() - begin_s > 60 * config.minutes:
                yield {"measurement": name, **_row("the rest", "", "", "not reached in time")}
                break
            try:
                row = next(rows, None)
            except Exception as error:
                row = _row("the rest", "", "", f"failed: {type(error).__name__}: {error}")
            if row is None:
                break
            yield {"measurement": name, **row}


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_gpu", BenchGpuConfig, _run, args)


def _run(config: BenchGpuConfig) -> None:
    rows: list[Row] = []
    for row in measure(config):
        rows.append(row)
        print(json.dumps(row), flush=True)
    shown = {key: value for key, value in vars(config).items() if value}
    print(f"\n{machine('torch', 'transformers', device=config.device)}; {shown}\n")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
