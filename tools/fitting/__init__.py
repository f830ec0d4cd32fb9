"""Training of tokenizers and vocoders."""
