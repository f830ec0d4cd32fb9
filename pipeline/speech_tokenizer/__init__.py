"""The speech tokenizer: HuBERT, k-means, and the `compact` one."""
