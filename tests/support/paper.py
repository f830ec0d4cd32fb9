"""Miniature inputs of docs/reproduce-paper.md: data, weights and a hub cache.

All weights are random and small, in the published formats. Sizes are those of the preset `mini`,
whose attention heads are 64 wide as in all published models.
"""

import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tomli_w
import torch
from PIL import Image
from torch import nn

from im2sp.pipeline.image_tokenizer.network import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from im2sp.tools.engines.git_reference import git_from, git_state_dict
from im2sp.tools.engines.java import METEOR_JAR, SPICE_JAR, SPICE_MODELS, TOKENIZER_JAR
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import SEIT_STEM_STRIDE, preset_config
from im2sp.trainer.vocabulary import Vocabulary
from support.evaluation import make_ctc_model
from support.hub import cached_repository
from support.hubert import clip, km_bytes, make_centroids, make_hubert, save_folder
from support.published import original_state_dict, timm_state_dict
from support.speech_sources import karpathy_image, write_karpathy, write_spoken_coco
from support.teachers import make_teacher
from support.training import git_tokenizer
from support.vocoder import make_config, random_generator, save_published

NUM_UNITS = 200
MAX_TOKENS = 64
COCO_SPLITS = {"train": 3, "restval": 1, "val": 2, "test": 2}
FLICKR8K_SPLITS = {"train": 2, "val": 1, "test": 1}
CAPTIONS = ["A dog runs .", "The red dog sits on snow ."]
# Replaces 100,000 full-size steps by one second of training; enough to generate output.
MINIATURE = {
    "preset": "mini",
    "steps": 4,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "schedule_steps": 8,
    "checkpoint_every": 4,
    "max_length": MAX_TOKENS - 1,
    "tensorboard": False,
}
# Replies in the format of the programs of pycocoevalcap, with invented figures.
JAVA = """
import json, sys
if "-stdio" in sys.argv:
    for line in sys.stdin:
        answers = ["0.5", "0.25"] if line.startswith("EVAL") else [" ".join(["1"] * 23)]
        print(*answers, sep="\\n", flush=True)
elif "-preserveLines" in sys.argv:
    sys.stdout.write(sys.stdin.read().lower())
else:
    rows = json.load(open(sys.argv[4]))
    found = [{"image_id": row["image_id"], "scores": {"All": {"f": 0.5}}} for row in rows]
    json.dump(found, open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""


def make_data(folder: Path) -> None:
    """COCO and Flickr8k with speech, in the layouts shown in the guide."""
    entries, spoken = [], {"train": [], "val": []}
    number = 0
    for split, count in COCO_SPLITS.items():
        part = "train" if split == "train" else "val"
        for _ in range(count):
            number += 1
            name = f"COCO_{part}2014_{number:012d}.jpg"
            _draw(folder / f"COCO_2014/{part}2014/{name}", number)
            entries.append(
                karpathy_image(name, split, CAPTIONS, filepath=f"{part}2014", cocoid=number)
            )
            clips = [
                {"text": text.rstrip(" ."), "wav": f"wavs/{part}/0/m{k}-{number}.wav"}
                for k, text in enumerate(CAPTIONS)
            ]
            for one in clips:
                _speak(folder / "SpokenCOCO" / one["wav"], number)
            spoken[part].append({"image": f"{part}2014/{name}", "captions": clips})
    for part, found in spoken.items():
        write_spoken_coco(folder / "SpokenCOCO", part, found)
    write_karpathy(folder / "dataset_coco.json", entries)
    _make_flickr8k(folder)


def _make_flickr8k(folder: Path) -> None:
    entries, lines = [], []
    for split, count in FLICKR8K_SPLITS.items():
        for _ in range(count):
            stem = f"{1000 + len(entries)}_93b08cb0e"
            _draw(folder / f"Flickr8k/Images/{stem}.jpg", len(entries))
            entries.append(karpathy_image(f"{stem}.jpg", split, CAPTIONS))
            for number in range(len(CAPTIONS)):
                _speak(folder / f"flickr_audio/wavs/{stem}_{number}.wav", number)
                lines.append(f"{stem}_{number}.wav {stem}.jpg #{number}\n")
    write_karpathy(folder / "dataset_flickr8k.json", entries)
    (folder / "flickr_audio/wav2capt.txt").write_text("".join(lines))


def _draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((64, 48)).save(path)


def _speak(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, clip(8000, seed), 16_000, subtype="PCM_16")


def make_weights(folder: Path) -> None:
    """Files that users download by hand."""
    (folder / "seit").mkdir(parents=True)
    network = make_image_tokenizer()
    features = nn.Sequential(network.encoder, network.pre_quant)
    torch.save(features, folder / "seit/tokenizer.ckpt")
    rows = network.quantizer.embedding.weight.detach()[:391].clone()
    torch.save(rows, folder / "seit/codebook.ckpt")
    git = make_model(Vocabulary(kind="text", num_ids=120, layout="git"))
    torch.save({"model": timm_state_dict(git), "epoch": 99}, folder / "seit/trained-vit.ckpt")
    original = make_model(Vocabulary(kind="speech", num_ids=NUM_UNITS, layout="original"))
    checkpoint = folder / "Im_unit_to_Speech_Pretrained.ckpt"
    torch.save({"state_dict": original_state_dict(original)}, checkpoint)
    (folder / "km.bin").write_bytes(km_bytes(make_centroids(make_hubert(), NUM_UNITS).numpy()))
    config = make_config(num_embeddings=NUM_UNITS, upsample_initial_channel=32)
    save_published(folder / "vocoder", config, random_generator(config), steps=950_000)
    with zipfile.ZipFile(folder / "stanford-corenlp-full-2015-12-09.zip", "w") as archive:
        for jar in SPICE_MODELS:
            archive.writestr(f"stanford-corenlp-full-2015-12-09/{jar}", "made up")


def make_hub(cache: Path) -> None:
    """Repositories of the hub, as if already downloaded."""
    network = make_image_tokenizer()
    state = {**network.state_dict(), "loss.perceptual.weight": torch.ones(3)}
    folder = cached_repository(cache, "thuanz123/vitvqgan-imagenet-base")
    torch.save({"epoch": 9, "state_dict": state}, folder / "imagenet_vitvq_base.ckpt")
    save_folder(make_hubert(), cached_repository(cache, "facebook/hubert-base-ls960"), form="bin")
    git = make_model(Vocabulary(kind="text", num_ids=120, layout="git"))
    folder = cached_repository(cache, "microsoft/git-large")
    git_from(git).save_pretrained(folder, state_dict=git_state_dict(git))
    (folder / "tokenizer.json").write_bytes(git_tokenizer(120))
    mini = git.config.decoder
    sizes = {"hidden_size": mini.width, "num_hidden_layers": mini.depth}
    sizes |= {"num_attention_heads": mini.heads, "intermediate_size": mini.mlp_width}
    folder = cached_repository(cache, "microsoft/git-large-coco")
    make_teacher(folder, "git", vocab_size=120, **sizes)
    (folder / "tokenizer.json").write_bytes(git_tokenizer(120))
    make_teacher(cached_repository(cache, "openai/clip-vit-large-patch14"), "clip")
    make_teacher(cached_repository(cache, "google/vit-large-patch16-224"), "classifier")
    folder = cached_repository(cache, "facebook/wav2vec2-large-960h-lv60-self")
    folder.rmdir()
    make_ctc_model(folder)


def make_recipes(folder: Path, originals: list[Path]) -> None:
    """The recipes with their settings replaced by those of `MINIATURE`."""
    folder.mkdir(parents=True)
    for path in originals:
        settings: dict[str, Any] = tomllib.loads(path.read_text()) | MINIATURE
        (folder / path.name).write_text(tomli_w.dumps(settings))


def make_caption_programs(folder: Path) -> None:
    """Stand-in for the package pycocoevalcap: its jars, without the extra ones of SPICE."""
    package = folder / "pycocoevalcap"
    for jar in (METEOR_JAR, SPICE_JAR, TOKENIZER_JAR):
        (package / jar).parent.mkdir(parents=True)
        (package / jar).touch()
    (package / "spice/lib").mkdir()
    (package / "__init__.py").touch()


def make_image_tokenizer() -> ViTVQGAN:
    """A ViT-VQGAN for 256 x 256 pixels with the published codebook's size."""
    torch.manual_seed(11)
    stack = TransformerConfig(width=64, depth=1, heads=1, mlp_width=64)
    config = ViTVQGANConfig(encoder=stack, decoder=stack, num_codes=8192)
    return ViTVQGAN(config, (32, 32)).eval().requires_grad_(False)


def make_model(vocabulary: Vocabulary) -> Im2SpModel:
    """A captioner of the preset `mini` for that codebook."""
    torch.manual_seed(5)
    # Published encoders have SeiT's stem.
    mini = preset_config("mini", vocabulary)
    config = replace(mini, max_positions=MAX_TOKENS, stem_stride=SEIT_STEM_STRIDE, conv_stem=False)
    return Im2SpModel(config, torch.randn(8192, 32)).eval()
