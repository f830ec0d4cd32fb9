"""The tokenize job: configuration, decoding processes, chunks, output."""
