"""Pickle instructions: what they push, upper bounds of their memory, and the limit of it."""

import pickletools
from collections.abc import Callable
from typing import Any

MARK = object()
"""Mark on the stack of a pickle."""
PLACE_BYTES, VALUE_BYTES, ENTRY_BYTES, RECORD_BYTES = 16, 80, 112, 640
"""Upper bounds of a place on the stack, a small container, an entry of a dict or set, and a
`Record` or a name."""
LITERALS = frozenset(
    opcode.name
    for opcode in pickletools.opcodes
    if opcode.name.startswith(("BINBYTES", "BYTEARRAY", "SHORT_BIN", "BINSTRING", "BINUNICODE"))
    or opcode.name.startswith(("BININT", "BINFLOAT", "LONG", "INT", "FLOAT", "STRING", "UNICODE"))
) - {"LONG_BINGET", "LONG_BINPUT"}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: MARK,
}
GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
COSTS = {
    **dict.fromkeys((*LITERALS, *CONSTANTS, *GETS, "POP", "DUP", "PROTO", "FRAME"), PLACE_BYTES),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT"), VALUE_BYTES),
    **dict.fromkeys(PUTS, ENTRY_BYTES),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"), RECORD_BYTES),
    "EMPTY_SET": 240,
}
"""Upper bounds of the bytes that an instruction takes, `VALUE_BYTES` for others."""
BASE_BYTES = 56 << 20
BYTES_A_BYTE = 7
"""The values of a file may take `BASE_BYTES`, and `BYTES_A_BYTE` times its size."""


class Budget:
    """Memory that the values of a file may take together.

    Args:
        file_bytes: Size of the file.
        taken_bytes: Memory that is taken already.
    """

    def __init__(self, file_bytes: int, taken_bytes: int = 0) -> None:
        self.limit_bytes = self.left_bytes = BASE_BYTES + BYTES_A_BYTE * file_bytes - taken_bytes

    def charge(self, size_bytes: int) -> None:
        """Count memory.

        Raises:
            ValueError: The values exceed the limit.
        """
        self.left_bytes -= size_bytes
        if self.left_bytes < 0:
            raise ValueError(
                f"its values need more than {self.limit_bytes:,} bytes, the limit for a file of its"
                " size"
            )
