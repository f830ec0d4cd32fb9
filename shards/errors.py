"""The exception for bad data, the check that raises it most often, and counts in messages."""


class ShardError(ValueError):
    """Data is not what the format or the manifest says; the message says where and what to do."""


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Raise unless the value is an int (no bool) from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ShardError(f"{name} is {value!r}; expected a whole number from {low} to {high}")


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
