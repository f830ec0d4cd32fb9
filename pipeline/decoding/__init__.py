"""Decoding of images and clips: checks, formats, views."""
