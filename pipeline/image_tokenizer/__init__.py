"""The image tokenizer: ViT-VQGAN, its weights, and the `compact` one."""
