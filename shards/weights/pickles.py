"""Restricted pickle interpreter that runs no code from the file.

A pickle is a program for a stack machine whose instructions may import and call anything. This
interpreter implements the instructions that build numbers, strings and plain containers. The name
of a class or function stays a name (`GlobalName`); only the few that rebuild tensors and arrays can
be called, and they are replaced by functions of `rebuild.py`. An object of any other class outside
the standard library becomes a `Record` of its state. Everything else is refused by name.

Nothing is imported, no attribute is looked up on a value from the file, and recursion does not
depend on the file. An upper bound of the memory is counted with every instruction (`Budget`): a
file whose values need more is refused. That bounds the time as well, since a pickle can copy what
it has built only by calls, which are counted by their results.
"""

# The content of a pickle has no static type, and the table of steps is part of the class.
# pyright: reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false
# pyright: reportPrivateUsage=false

import pickletools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from im2sp.shards.weights import opcodes


class WeightsError(ValueError):
    """A weights file cannot be used; one line with file, position, found and expected."""


class RefusedGlobalError(Exception):
    """A pickle names a global that is not allowed; `str()` is that name."""


@dataclass(frozen=True)
class GlobalName:
    """Name of a class or function in a pickle; it is not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        """Dotted name, as in an import statement."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Record:
    """State of an object whose class was not imported, with the class's name.

    `state` is the content of `__dict__`. `items` and `entries` are the appended and keyed elements,
    for subclasses of list and dict.
    """

    kind: GlobalName
    state: dict[Any, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)


class ReadableFile(Protocol):
    """An open file, a mapped one, or bytes in memory."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes."""
        ...

    def readline(self) -> bytes:
        """Up to and with the next line end."""
        ...

    def tell(self) -> int:
        """Position."""
        ...

    def seek(self, offset: int, /) -> object:
        """Move."""
        ...


Rebuilder = Callable[..., Any]

# Names of the standard library for harmless types or objects that are never called.
_INERT_NAMES = frozenset(
    f"builtins.{name}"
    for name in ("bool", "bytes", "complex", "dict", "float", "int", "list", "object", "str")
) | {"builtins.tuple"}
# Classes of the standard library that only hold state.
_STATE_CLASSES = frozenset({"argparse.Namespace", "types.SimpleNamespace"})
_CONSTRUCTORS = frozenset({"copyreg._reconstructor", "copyreg.__newobj__"})
_KNOWN_NAMES = _INERT_NAMES | _STATE_CLASSES | _CONSTRUCTORS
_PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_PYTHON2_ONLY = frozenset(
    {"commands", "exceptions", "popen2", "thread", "cPickle", "StringIO", "urllib2", "posixfile"}
)
_DOTTED_NAME = re.compile(r"\w+(\.\w+)*", re.UNICODE)


def check_global(module: Any, name: Any, rebuilders: Mapping[str, Rebuilder]) -> GlobalName:
    """Turn a named global into a `GlobalName`, or refuse it.

    Raises:
        RefusedGlobalError: It is in Python's standard library and not known to be harmless.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise RefusedGlobalError("a global whose name is not text")
    found = GlobalName(_PYTHON2_MODULES.get(module, module), name)
    dotted = str(found)
    if dotted in rebuilders or dotted in _KNOWN_NAMES:
        return found
    if not _DOTTED_NAME.fullmatch(module) or not _DOTTED_NAME.fullmatch(name):
        raise RefusedGlobalError(repr(dotted[:100]))
    top = found.module.partition(".")[0]
    if top == "typing":
        return found
    if top in sys.stdlib_module_names or top in _PYTHON2_ONLY:
        raise RefusedGlobalError(dotted)
    return found


def check_key(key: Any) -> None:
    """Refuse dictionary keys other than scalars, names and flat tuples of them.

    Hashing a tuple nested a million deep would overflow the C stack.
    """
    for part in key if type(key) is tuple else (key,):
        if not isinstance(part, str | bytes | int | float | GlobalName | Record | None):
            raise TypeError(f"a key that holds a {type(part).__name__}")


def make_set(values: Any) -> set[Any]:
    """A set (also for a frozenset) of checked elements."""
    for value in values:
        check_key(value)
    return set(values)


class InertUnpickler:
    """Stack machine; one instance reads one pickle.

    Args:
        file: Open at the start of the pickle; left right after its last byte.
        budget: Memory for the values of all pickles of the file.
        rebuilders: Dotted name of a global -> function that is called instead. A rebuilder
            checks its own arguments and raises ValueError.
        persistent_load: Resolves a persistent id; None refuses them.
        state_setters: Type of a rebuilt value -> function (value, state) -> value, for types whose
            pickles set a state after rebuilding.
    """

    def __init__(
        self,
        file: ReadableFile,
        budget: opcodes.Budget,
        rebuilders: Mapping[str, Rebuilder],
        persistent_load: Callable[[Any], Any] | None = None,
        state_setters: Mapping[type, Callable[[Any, Any], Any]] | None = None,
    ) -> None:
        self.file = file
        self.rebuilders = rebuilders
        self.persistent_load = persistent_load
        self.state_setters = state_setters or {}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # By id, values that their state replaced, and what replaced them.
        self.replaced: dict[int, tuple[Any, Any]] = {}
        self.charge = budget.charge

    def load(self) -> Any:
        """Run the pickle and return its value.

        Raises:
            RefusedGlobalError: It names a global that is not allowed.
            ValueError: It is damaged, or contains an instruction that is not allowed.
        """
        place = 0
        try:
            for name, argument, position in self._instructions():
                place = position
                if name == "STOP":
                    return self.pop()
                self._step(name, argument)
        except (LookupError, TypeError, OverflowError, MemoryError, RecursionError) as error:
            raise ValueError(f"damaged pickle at byte {place}: {error}") from error
        raise ValueError("damaged pickle: it has no end")

    def _instructions(self) -> Iterator[tuple[str, Any, int]]:
        """Name, argument and position of each instruction; pickletools runs none of them."""
        try:
            # It needs only the methods of ReadableFile.
            for opcode, argument, position in pickletools.genops(self.file):  # pyright: ignore[reportArgumentType]
                yield opcode.name, argument, position or 0
        except ValueError as error:
            raise ValueError(f"damaged pickle: {error}") from error

    def pop(self) -> Any:
        """Topmost value; raises IndexError on a stray mark."""
        value = self.stack.pop()
        if value is opcodes.MARK:
            raise IndexError("a mark where a value belongs")
        return value

    def pop_to_mark(self) -> list[Any]:
        """Values above the last mark, in order."""
        values: list[Any] = []
        while (value := self.stack.pop()) is not opcodes.MARK:
            values.append(value)
        values.reverse()
        return values

    def _step(self, name: str, argument: Any) -> None:
        self.charge(opcodes.COSTS.get(name, opcodes.VALUE_BYTES))
        if name in opcodes.LITERALS:
            self.charge(sys.getsizeof(argument))
            self.stack.append(argument)
        elif name in opcodes.CONSTANTS:
            self.stack.append(opcodes.CONSTANTS[name]())
        elif name in opcodes.GETS:
            value = self.memo[int(argument)]
            self.stack.append(self.replaced.get(id(value), (None, value))[1])
        elif name in opcodes.PUTS:
            top = self.stack[-1]
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = top
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"pickle instruction {name} is not allowed")

    def _tuple(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(values)))

    def _append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items.extend(values)
        elif type(target) is list:
            target.extend(values)
        else:
            raise TypeError(f"items for a {type(target).__name__}")

    def _set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Record) else target
        if type(entries) is not dict or len(values) % 2:
            raise TypeError(f"keys and values for a {type(target).__name__}")
        self.charge(opcodes.ENTRY_BYTES * len(values))
        for key in values[::2]:
            check_key(key)
        entries.update(zip(values[::2], values[1::2], strict=True))

    def _add_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise TypeError(f"elements for a {type(target).__name__}")
        self.charge(opcodes.ENTRY_BYTES * len(values))
        for value in values:
            check_key(value)
        target.update(values)

    def _dict(self) -> None:
        values = self.pop_to_mark()
        self.stack.append({})
        self._set_items(values)

    def _global(self, module: Any, name: Any) -> None:
        self.stack.append(check_global(module, name, self.rebuilders))

    def _stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self._global(module, name)

    def _reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, GlobalName) or type(arguments) is not tuple:
            raise TypeError("a call of something that is not a name")
        if str(called) == "copyreg.__newobj__":
            self._construct(arguments[0], arguments[1:])
            return
        if str(called) == "copyreg._reconstructor":
            kind, base, state = arguments
            is_plain = base == GlobalName("builtins", "object") and state is None
            self._construct(kind, () if is_plain else (base, state))
            return
        rebuilder = self.rebuilders.get(str(called))
        if rebuilder is None:
            raise RefusedGlobalError(f"a call of {called}")
        # A call may copy its arguments.
        self.charge(sum(len(part) for part in arguments if isinstance(part, str | bytes)))
        self._push_built(rebuilder(*arguments))

    def _push_built(self, value: Any) -> None:
        """Push the result of a call, counted as if nothing in it existed before."""
        if isinstance(value, np.ndarray):
            self.charge(value.nbytes)
        elif isinstance(value, dict | set | frozenset | tuple | list):
            self.charge(opcodes.ENTRY_BYTES * len(value))
        else:
            self.charge(sys.getsizeof(value))
        self.stack.append(value)

    def _construct(self, kind: Any, arguments: Any) -> None:
        """Make an empty object of a class; its arguments are ignored, as its code is not run."""
        if not isinstance(kind, GlobalName) or type(arguments) not in (tuple, list):
            raise TypeError("an object of something that is not a name")
        if str(kind) in self.rebuilders:
            self._push_built(self.rebuilders[str(kind)](*arguments))
        elif arguments or str(kind) in _INERT_NAMES:
            raise RefusedGlobalError(f"a call of {kind}")
        else:
            self.stack.append(Record(kind))

    def _new_object(self, keyword: bool) -> None:
        if keyword and self.pop() != {}:
            raise ValueError("an object made with keyword arguments is not allowed")
        arguments, kind = self.pop(), self.pop()
        self._construct(kind, arguments)

    def _old_object(self) -> None:
        values = self.pop_to_mark()
        self._construct(values[0], values[1:])

    def _old_instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        kind = check_global(module, name, self.rebuilders)
        self._construct(kind, self.pop_to_mark())

    def _build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        setter = self.state_setters.get(type(target))
        if setter is not None:
            self.stack.pop()
            self._push_built(setter(target, state))
            if self.stack[-1] is not target:
                self.charge(opcodes.ENTRY_BYTES + opcodes.VALUE_BYTES)
                self.replaced[id(target)] = target, self.stack[-1]
        elif isinstance(target, Record):
            parts = state if type(state) is tuple and len(state) == 2 else (state,)
            if all(part is None or type(part) is dict for part in parts):
                for part in parts:
                    self.charge(opcodes.ENTRY_BYTES * len(part or {}))
                    target.state.update(part or {})
            else:
                target.state["__state__"] = state
        elif type(target) is not dict:  # attributes of an OrderedDict are dropped
            raise TypeError(f"a state for a {type(target).__name__}")

    def _persistent(self, persistent_id: Any) -> None:
        if self.persistent_load is None:
            raise ValueError("a reference to data outside the pickle")
        self.stack.append(self.persistent_load(persistent_id))


_STEPS: dict[str, Callable[[InertUnpickler, Any], None]] = {
    "POP": lambda machine, _: machine.stack.__delitem__(-1),
    "POP_MARK": lambda machine, _: machine.pop_to_mark().clear(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(make_set(machine.pop_to_mark())),
    "DICT": lambda machine, _: machine._dict(),
    "APPEND": lambda machine, _: machine._append([machine.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine._set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine._set_items(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine._add_items(machine.pop_to_mark()),
    "GLOBAL": lambda machine, argument: machine._global(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine._stack_global(),
    "REDUCE": lambda machine, _: machine._reduce(),
    "NEWOBJ": lambda machine, _: machine._new_object(keyword=False),
    "NEWOBJ_EX": lambda machine, _: machine._new_object(keyword=True),
    "OBJ": lambda machine, _: machine._old_object(),
    "INST": lambda machine, argument: machine._old_instance(argument),
    "BUILD": lambda machine, _: machine._build(),
    "PERSID": lambda machine, argument: machine._persistent(argument),
    "BINPERSID": lambda machine, _: machine._persistent(machine.pop()),
}
