"""Files that hold many inputs: tars, Parquet and Arrow tables."""
