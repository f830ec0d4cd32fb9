"""The one exception that this room raises for bad data."""


class ShardError(ValueError):
    """Data is not what the format or the manifest says; the message says where and what to do."""
