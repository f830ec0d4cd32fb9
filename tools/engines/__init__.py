"""Programs and models of others: speech recognition, synthesis, metrics, MOS."""
