"""Datasets that a tiny model trains on within a second."""

from pathlib import Path

import numpy as np
import tokenizers

from im2sp.shards import (
    DEFAULT_COLUMNS,
    Layout,
    Manifest,
    Sample,
    encode_batch,
    write_codebook,
    write_shard,
)
from im2sp.trainer.config import TrainConfig

WORDS = ["a", "the", "two", "dog", "man", "runs", "jumps", "sits", "on", "grass", "snow", "red"]
IMAGE_FINGERPRINT, SPEECH_FINGERPRINT = "a" * 64, "b" * 64


def make_samples(splits: dict[str, int], *, num_units: int = 20, seed: int = 0) -> list[Sample]:
    """Samples with two utterances and captions each."""
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for split, num in splits.items():
        for i in range(num):
            lengths = rng.integers(3, 8, 2)
            words = [rng.choice(WORDS, length) for length in lengths]
            samples.append(
                Sample(
                    key=f"{split}{i}",
                    split=split,
                    image_units=rng.integers(0, 8192, (28, 28)).astype(np.uint16),
                    speech_units=[rng.integers(0, num_units, n).astype(np.uint16) for n in lengths],
                    captions=[" ".join(chosen) for chosen in words],
                )
            )
    return samples


def make_shards(
    folder: Path,
    splits: dict[str, int] | None = None,
    *,
    num_units: int = 20,
    seed: int = 0,
    image_fingerprint: str = IMAGE_FINGERPRINT,
    speech_fingerprint: str = SPEECH_FINGERPRINT,
    samples: list[Sample] | None = None,
) -> Path:
    """Write a dataset; by default 8 training and 3 validation samples."""
    folder.mkdir(parents=True)
    splits = splits or {"train": 8, "val": 3}
    samples = samples or make_samples(splits, num_units=num_units, seed=seed)
    shard = write_shard(folder / "00000.arrow", [encode_batch(samples)])
    codebook = np.random.default_rng(9).normal(size=(8192, 4)).astype(np.float32)
    Manifest(
        num_samples=len(samples),
        splits=splits,
        layout=Layout(),
        columns=DEFAULT_COLUMNS,
        shards=(shard,),
        image_tokenizer={
            "name": "test",
            "fingerprint": image_fingerprint,
            "codebook_file": "codebook.safetensors",
            "codebook_sha256": write_codebook(folder, codebook),
        },
        speech_tokenizer={
            "name": "test",
            "fingerprint": speech_fingerprint,
            "num_units": num_units,
        },
    ).write(folder)
    return folder


def make_config(shards: Path | tuple[str, ...], out: Path, **changes) -> TrainConfig:
    """Settings of a run that takes a second."""
    settings = {
        "preset": "tiny",
        "steps": 6,
        "batch_size": 2,
        "bucket_window": 2,
        "warmup_steps": 2,
        "checkpoint_every": 3,
        "log_every": 1,
        "tensorboard": False,
        "quiet": True,
        "device": "cpu",
        "shards": shards,
        "out": out,
    }
    return TrainConfig(**(settings | changes))


def weights_of(out: Path, step: int) -> bytes:
    """The bytes of a checkpoint's weights."""
    return (out / f"step-{step:06d}" / "model.safetensors").read_bytes()


def git_tokenizer(num_pieces: int) -> bytes:
    """A tokenizer.json with BERT's ids: PAD 0, BOS (CLS) 101, EOS (SEP) 102."""
    pieces = [f"[unused{i}]" for i in range(num_pieces)]
    known = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "dog", 104: "##s", 105: "a"}
    for place, piece in known.items():
        if place < num_pieces:
            pieces[place] = piece
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if num_pieces > 102 else [])
    return tokenizer.to_str().encode()
