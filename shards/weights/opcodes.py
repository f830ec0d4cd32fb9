"""Tables of the pickle instructions: what they push, and upper bounds of the memory they take."""

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
