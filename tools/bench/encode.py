"""Time images -> units, or speech -> units: our encoder against a plain one as published.

    python tools/bench/encode.py --size base --repeats 5
    python tools/bench/encode.py --audio --repeats 5

Each case encodes the same batch to units, including the quantiser. The cases take turns, `repeats`
times after a warm-up, so that other load affects all of them; figures are medians. Prints one JSON
row per case, then a table. `speedup` and `equal_units` compare with `plain-fp32`.

To add a case, add a function (network, pixels) -> `Case` to `CASES`. `bench/job.py` times the whole
job around the encoder. `bench/speech.py` describes `--audio`.
"""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from im2sp.pipeline.image_tokenizer.network import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from im2sp.pipeline.image_tokenizer.tokenizer import BUNDLED, ImageTokenizer, Precision
from im2sp.pipeline.image_tokenizer.weights import load_network
from im2sp.pipeline.tensors import read_weights
from im2sp.shards.command_line import run_command
from im2sp.shards.weights.hub import find_weights
from im2sp.tools.bench.timing import BASELINE, check_cases, table, take_turns

if TYPE_CHECKING:
    from im2sp.tools.bench.speech import SpeechSettings

SIZES = {
    "tiny": TransformerConfig(width=128, depth=2, heads=2, mlp_width=256),
    "small": TransformerConfig(width=512, depth=8, heads=8, mlp_width=2048),
    "base": TransformerConfig(width=768, depth=12, heads=12, mlp_width=3072),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Time images to units, or audio to units: our encoder against a plain one."""

    cases: tuple[str, ...] = ("plain-fp32", "ours-fp32", "ours-bf16")
    """Names of the cases; see CASES."""
    size: Literal["tiny", "small", "base"] = "base"
    """Encoder with random weights; the published sizes are small and base."""
    weights: str = ""
    """Time these weights instead: "compact", a path or a hub id."""
    image_size_px: int = 224
    """Side of the square images."""
    num_images: int = 8
    """Images in the batch."""
    audio: bool = False
    """Time a HuBERT on audio instead of images; sizes tiny and base."""
    num_clips: int = 12
    """With --audio: clips in the batch."""
    clip_s: float = 6.0
    """With --audio: mean length of a clip; they are 0.5 to 1.5 times as long."""
    num_units: int = 200
    """With --audio: number of k-means centroids."""
    repeats: int = 5
    """Timed runs of each case."""
    threads: int = 0
    """CPU threads; 0 for torch's default."""
    device: str = "cpu"
    """torch device of all cases."""


# Settings that do not apply to images.
AUDIO_ONLY = ("audio", "num_clips", "clip_s", "num_units")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A timed case."""

    run: Callable[[], Tensor]
    """Function that encodes the batch once and returns the units (B, h, w)."""
    num_images: int
    """Images per run."""


def photographs(settings: Settings) -> Tensor:
    """(B, 3, S, S) float32 in [0, 1]: blobs of every scale with some noise, seeded."""
    generator = torch.Generator().manual_seed(0)
    side = settings.image_size_px
    image = torch.zeros(settings.num_images, 3, side, side)
    for cells in (2, 5, 11, 28, 56):
        noise = torch.randn(settings.num_images, 3, cells, cells, generator=generator)
        image += F.interpolate(noise, size=(side, side), mode="bilinear") * cells**-0.5
    return torch.sigmoid(image + 0.05 * torch.randn(image.shape, generator=generator))


def make_network(settings: Settings, pixels: Tensor) -> ViTVQGAN:
    """Network with the given weights, or with random ones.

    Features of random weights all have nearly the same direction, so only a few codes would occur;
    they are centred, so that many codes compete and rounding becomes visible.
    """
    if settings.weights:
        return load_network(read_weights(find_weights(settings.weights, BUNDLED)))
    torch.manual_seed(0)
    config = ViTVQGANConfig(encoder=SIZES[settings.size], decoder=None)
    side = settings.image_size_px // config.patch_size_px
    network = ViTVQGAN(config, (side, side)).eval().requires_grad_(False)
    features = network.encode_features(pixels[:1])
    network.pre_quant.bias.sub_(features.mean(dim=(0, 1)))
    return network


def plain_units(network: ViTVQGAN, pixels: Tensor) -> Tensor:
    """The published arithmetic, op by op: every attention matrix and distance is stored."""
    encoder, heads = network.encoder, network.config.encoder.heads
    patches = encoder.to_patch_embedding(pixels)
    grid = patches.shape[2:]
    x = patches.flatten(2).transpose(1, 2) + encoder.positions((grid[0], grid[1]))
    for attention, mlp in encoder.transformer.layers:  # pyright: ignore[reportGeneralTypeIssues] # ModuleList
        q, k, v = attention.fn.to_qkv(attention.norm(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        scores = torch.matmul(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        mixed = torch.matmul(torch.softmax(scores, dim=-1), v)
        x = attention.fn.to_out(mixed.transpose(1, 2).flatten(2)) + x
        x = mlp(x) + x
    features = network.pre_quant(encoder.transformer.norm(x))
    flat = F.normalize(features.flatten(0, 1), dim=-1)
    codes = F.normalize(network.quantizer.embedding.weight, dim=-1)
    products = torch.einsum("bd,nd->bn", flat, codes)
    distances = (flat**2).sum(1, keepdim=True) + (codes**2).sum(1) - 2 * products
    return distances.argmin(1).view(-1, grid[0], grid[1])


def plain_case(network: ViTVQGAN, pixels: Tensor) -> Case:
    """Published arithmetic in float32, 64 images at once."""
    device = network.quantizer.embedding.weight.device

    def encode() -> Tensor:
        parts = pixels.split(64)
        return torch.cat([plain_units(network, part.to(device)).cpu() for part in parts])

    return Case(run=encode, num_images=len(pixels))


def our_case(precision: Precision) -> Callable[[ViTVQGAN, Tensor], Case]:
    """`ImageTokenizer.encode`, checks included."""

    def build(network: ViTVQGAN, pixels: Tensor) -> Case:
        device = network.quantizer.embedding.weight.device
        tokenizer = ImageTokenizer(network, name="bench", precision=precision, device=device)
        return Case(run=lambda: tokenizer.encode(pixels), num_images=len(pixels))

    return build


CASES: dict[str, Callable[[ViTVQGAN, Tensor], Case]] = {
    BASELINE: plain_case,
    "ours-fp32": our_case("fp32"),
    "ours-bf16": our_case("bf16"),
}


def run(settings: Settings) -> list[dict[str, object]]:
    """Time the cases on images; return one row each."""
    check_cases(settings.cases, CASES)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    pixels = photographs(settings)
    with torch.inference_mode():
        network = make_network(settings, pixels).to(settings.device)
        cases = {name: CASES[name](network, pixels) for name in settings.cases}
        units = {name: case.run() for name, case in cases.items()}
        times_s = take_turns({name: case.run for name, case in cases.items()}, settings.repeats)
    shown = {name: value for name, value in asdict(settings).items() if name not in AUDIO_ONLY}
    rows: list[dict[str, object]] = []
    baseline_s = statistics.median(times_s[BASELINE]) if BASELINE in cases else None
    for name, case in cases.items():
        median_s = statistics.median(times_s[name])
        row: dict[str, object] = {
            "case": name,
            "median_s": round(median_s, 4),
            "images_per_s": round(case.num_images / median_s, 3),
            "distinct_units": len(units[name].unique()),
        }
        if baseline_s is not None:
            row["speedup"] = round(baseline_s / median_s, 2)
            row["equal_units"] = round((units[name] == units[BASELINE]).float().mean().item(), 5)
        rows.append({**row, **shown, "threads": torch.get_num_threads()})
    return rows


COLUMNS = ("case", "images_per_s", "speedup", "equal_units", "distinct_units")


def speech_settings(settings: Settings) -> "SpeechSettings":
    """Subset of the settings that applies to speech.

    Raises:
        ValueError: Weights are given, or as `SpeechSettings`.
    """
    from im2sp.tools.bench.speech import SpeechSettings

    if settings.weights:
        raise ValueError(
            f"--weights {settings.weights}: --audio times random weights; leave it out"
        )
    names = SpeechSettings.__dataclass_fields__
    return SpeechSettings(**{name: getattr(settings, name) for name in names})


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_encode", Settings, _run, args)


def _run(settings: Settings) -> None:
    from im2sp.tools.bench import speech as bench_speech

    rows = bench_speech.run(speech_settings(settings)) if settings.audio else run(settings)
    for row in rows:
        print(json.dumps(row))
    print(table(rows, bench_speech.COLUMNS if settings.audio else COLUMNS))


if __name__ == "__main__":
    sys.exit(main())
