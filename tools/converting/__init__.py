"""Parts of `tools/convert.py`: units of other tools to datasets and back."""
