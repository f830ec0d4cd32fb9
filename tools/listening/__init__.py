"""The listening test: page and scores."""
