"""Columns of a dataset: unit columns with their codecs, own columns, and their Arrow arrays."""
