"""Listening test: page and scores."""
