"""Shards to model: the room of the token-to-token captioner."""
