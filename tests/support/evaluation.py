"""Stand-ins for the requirements of an evaluation: Java, captions, a tiny recognizer."""

import json
import stat
import sys
from pathlib import Path

CANDIDATES = {
    "a": "A dog runs in the snow.",
    "b": "two men ride bikes down a dirt path",
    "c": "A girl in a red t-shirt isn't jumping!",
    "d": "",
    "e": "a black dog jumps over a log",
}
REFERENCES = {
    "a": ["A dog is running through deep snow .", "The brown dog runs in the snow ."],
    "b": ["Two cyclists on a path", "Men riding mountain bikes down a hill .", "Two men , biking"],
    "c": ["A little girl wearing a red T-shirt jumps .", "Girl jumping"],
    "d": ["A man stands on a rock .", "The man is climbing"],
    "e": ["a black dog jumps over a log", "A dog leaps over wood ."],
}


def stand_in_java(folder: Path, program: str) -> str:
    """Executable that replaces Java and runs Python code."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "java"
    path.write_text(f"#!{sys.executable}\n{program}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def make_ctc_model(folder: Path) -> Path:
    """A wav2vec 2.0 with random weights and an alphabet, in the format of transformers."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJ"]
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8, 8), conv_stride=(5, 64), conv_kernel=(10, 64),
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, num_feat_extract_layers=2,
        pad_token_id=0,
    )  # fmt: skip
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    features = transformers.Wav2Vec2FeatureExtractor()
    transformers.Wav2Vec2Processor(features, tokenizer).save_pretrained(folder)
    return folder


def make_seq2seq_model(folder: Path) -> Path:
    """A Whisper with random weights and a few words, in the format of transformers."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    pieces = ["<|endoftext|>", "<|startoftranscript|>", *"abcdefghij"]
    (folder / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=len(pieces), d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=1500, max_target_positions=16,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 8
    model.save_pretrained(folder)
    tokenizer = transformers.WhisperTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        additional_special_tokens=["<|startoftranscript|>"],
    )
    features = transformers.WhisperFeatureExtractor(feature_size=8)
    transformers.WhisperProcessor(features, tokenizer).save_pretrained(folder)
    return folder
