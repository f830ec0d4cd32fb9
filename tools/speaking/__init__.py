"""Parts of im2sp-speak."""
