"""Layouts of shard files: Arrow and WebDataset."""
