"""Exception for bad data, checks of integers and memory, and counts in messages."""


class ShardError(ValueError):
    """Data that contradicts the format or manifest; the message names the place and the remedy."""


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Raise unless the value is an int (no bool) from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ShardError(f"{name} is {value!r}; expected a whole number from {low} to {high}")


def memory_limit(size_bytes: int) -> int:
    """Memory that reading a file of this size may take, in bytes; what needs more is refused."""
    return 64_000_000 + 8 * size_bytes


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
