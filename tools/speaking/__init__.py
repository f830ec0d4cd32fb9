"""Modules of im2sp-speak."""
