"""Writing of datasets: shard files, the dataset writer, and the joining of parts."""
