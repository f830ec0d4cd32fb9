"""Data and other readers of `bench/loader.py` and `bench/units.py`."""
