"""Third-party programs and models: speech recognition, synthesis, metrics, MOS."""
