"""Parts of `im2sp-info`: statistics of a dataset, and its page."""
