"""Text to speech units: characters to the units of a speech tokenizer, without attention."""
