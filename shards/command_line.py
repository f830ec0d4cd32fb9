"""Common code of all commands: flags, signals, streams, one-line errors, exit codes, `--version`.

A command consists of a frozen dataclass of its settings, whose field docstrings are the help, and a
function that takes it. `ValueError` in `__post_init__` is wrong usage. Control characters in what
it prints are escaped. A closed stdout or stderr, or one without a reader, does not stop the work.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed, with one line on stderr |
| 2 | wrong usage |
| 130, 143 | interrupted by Ctrl-C, terminated by SIGTERM |
"""

import ast
import dataclasses
import inspect
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar, Union, cast, get_type_hints

import tyro

from im2sp import __version__
from im2sp.shards.errors import log, shown
from im2sp.shards.files import output_lock
from im2sp.shards.stores import as_url, is_url, shown_url

Config = TypeVar("Config")


class UsageError(ValueError):
    """Invalid command line."""


def run_command(
    program: str,
    config_type: type[Config] | Mapping[str, type[Config]],
    run: Callable[[Config], int | None],
    args: Sequence[str] | None = None,
    *,
    parse: Callable[[Sequence[str]], Config] | None = None,
    out: Callable[[Config], Path | None] = lambda _: None,
    resume: str = "",
    memory_advice: str = "",
) -> int:
    """Parse the command line, run, and report every expected failure in one line.

    Args:
        program: Name of the command, the prefix of each message.
        config_type: Dataclass of the settings, or one for each subcommand by its name.
        run: The command itself; returns the exit code, None for 0.
        args: Command line; None for that of the process.
        parse: Use this instead of `parse_flags`.
        out: The folder that the command writes; it is created, and held for this process. None for
            a command that writes none.
        resume: What to do after an interruption, such as "run the same command again to resume".
        memory_advice: What to do when memory runs out.

    Returns:
        The exit code.
    """
    args = sys.argv[1:] if args is None else args
    signals = _Signals()
    with _standard_streams() as streams:
        try:
            with signals.raised():
                if "--version" in args:
                    print(f"im2sp {__version__}")
                    return 0
                config = parse(args) if parse else parse_flags(program, config_type, args)
                written = getattr(config, "out", "")
                if is_url(f"{written}"):
                    raise UsageError(f"--out {shown_url(as_url(written))}: not a folder or file")
                for stream in streams:
                    stream.has_styles = False
                folder = out(config)
                with nullcontext() if folder is None else _held(folder):
                    code = run(config) or 0
                sys.stdout.flush()
                return code
        except SystemExit as left:  # --help or an unknown flag; tyro has printed it
            return left.code if isinstance(left.code, int) else 0
        except BaseException as error:
            # An interrupt may surface as another exception, such as that of an import it stopped.
            code, message = signals.ending() or _explained(error)
            if code in (130, 143):
                message += f"; {resume}" * bool(resume)
            elif isinstance(error, MemoryError) or message.startswith("no memory left"):
                message += f"; {memory_advice}" * bool(memory_advice)
            print_message(program, message)
            return code


@contextmanager
def _held(folder: Path) -> Generator[None]:
    check_folder(folder)
    with output_lock(folder):
        yield


def check_folder(folder: Path) -> None:
    """Raise `UsageError` if `--out` is there and no folder."""
    if os.path.lexists(folder) and not folder.is_dir():
        what = "not a folder" if folder.exists() else "a link to nothing"
        raise UsageError(f"--out {folder}: {what}")


def print_message(program: str, message: str) -> None:
    """Print `program: message` on stderr, in one line."""
    log(f"{program}: {' '.join(message.split())}")


def _explained(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an expected exception; others are re-raised."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # torch.save on a full disk
    match error:
        case KeyboardInterrupt():
            return 130, "interrupted"
        case UsageError():
            return 2, str(error)
        case OSError():
            message = error.strerror or str(error)
            return 1, f"{error.filename}: {message}" if error.filename else message
        case MemoryError():
            return 1, str(error) or "no memory left"
        case ValueError():
            return 1, str(error)
        # torch's out-of-memory errors on a GPU and on the CPU; torch is not imported here.
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError":
            return 1, f"no memory left on the device: {str(error).splitlines()[0]}"
        case RuntimeError() if "can't allocate memory" in str(error):
            return 1, f"no memory left: {str(error).splitlines()[0]}"
        case _:
            raise error


# Signals and streams ------------------------------------------------------------------------------


class _Interrupted(KeyboardInterrupt):
    """A signal; it is sent again if code that catches every exception, or a destructor, drops it.

    Args:
        number: Its number.
        signals: What receives it.
    """

    def __init__(self, number: int, signals: "_Signals") -> None:
        super().__init__()
        self._number = number
        self._signals = signals

    def __del__(self) -> None:
        if self._signals.is_open:  # an exception in this method would be dropped, too
            main = threading.main_thread().ident
            again = threading.Timer(0.01, signal.pthread_kill, (main, self._number))
            again.daemon = True
            again.start()


class _Signals:
    """Ctrl-C and SIGTERM as exceptions, so that files and processes are cleaned up."""

    _ENDINGS: Mapping[int, tuple[int, str]] = {
        signal.SIGINT: (130, "interrupted"),
        signal.SIGTERM: (143, "terminated"),
    }

    def __init__(self) -> None:
        self.is_open = False
        self._last: int | None = None

    def ending(self) -> tuple[int, str] | None:
        """Exit code and message of the last signal, if one came."""
        return None if self._last is None else self._ENDINGS[self._last]

    @contextmanager
    def raised(self) -> Generator[None]:
        """Raise signals inside; handlers are restored after it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in self._ENDINGS}
        hook, sys.unraisablehook = sys.unraisablehook, self._pass_on(sys.unraisablehook)
        self.is_open = True
        try:
            for number, handler in before.items():
                if handler is not signal.SIG_IGN:  # as nohup sets it
                    signal.signal(number, self._stop)
            yield
        finally:
            self.is_open = False
            for number, handler in before.items():
                signal.signal(number, handler)
            sys.unraisablehook = hook

    def _stop(self, number: int, _: object) -> None:
        self._last = number
        raise _Interrupted(number, self)

    @staticmethod
    def _pass_on(hook: Callable[[Any], object]) -> Callable[[Any], None]:
        """A hook of exceptions in destructors that does not print signals."""

        def passed_on(unraisable: Any) -> None:
            if not issubclass(unraisable.exc_type, _Interrupted):
                hook(unraisable)

        return passed_on


_CURSOR = re.compile(r"\r|(?:\x1b\[A)+")
"""Movements of the cursor with which a progress bar starts a line."""
_STYLE = re.compile(r"(\x1b\[[0-9;]*m)")
"""Colours and styles, as in --help."""


class _Stream:
    """Standard stream that escapes control characters and ignores the end of its reader.

    Args:
        stream: The stream itself.
        is_log: It is stderr: progress bars may move the cursor, and no error of it stops the work.
    """

    has_styles = True
    """Leave styles as they are, as --help needs."""

    def __init__(self, stream: TextIO, *, is_log: bool) -> None:
        self._stream = stream
        self._is_log = is_log

    def write(self, text: str) -> int:
        """Write text; once the reader is gone, write nothing."""
        cursor = _CURSOR.match(text) if self._is_log else None
        start = cursor[0] if cursor else ""
        parts = _STYLE.split(text[len(start) :]) if self.has_styles else [text[len(start) :]]
        parts[::2] = [shown(part, "\n") for part in parts[::2]]
        safe = start + "".join(parts)
        with self._discarded():
            self._stream.write(safe)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with self._discarded():
            self._stream.flush()

    @contextmanager
    def _discarded(self) -> Generator[None]:
        """Discard the rest of the output after an error; a reader that is gone is none."""
        try:
            yield
        except OSError as error:
            with suppress(OSError, ValueError):  # a test's stand-in has no descriptor
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            if not (self._is_log or isinstance(error, BrokenPipeError)):
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _standard_streams() -> Generator[tuple[_Stream, _Stream]]:
    """Make stdout and stderr usable where they are closed, or cannot encode a character."""
    before = sys.stdout, sys.stderr
    out, err = _opened(sys.stdout, 1), _opened(sys.stderr, 2)
    streams = _Stream(out, is_log=False), _Stream(err, is_log=True)
    sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], streams)
    try:
        yield streams
    finally:
        for stream in streams:
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _opened(stream: TextIO | None, number: int) -> TextIO:
    """The stream itself, or one that discards everything if the caller closed it (`2>&-`)."""
    if stream is None:
        null = os.open(os.devnull, os.O_RDWR)
        try:
            os.fstat(number)
        except OSError:  # no file of ours may take its place
            os.dup2(null, number)
        return open(null, "w")
    if hasattr(stream, "reconfigure"):
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    return stream


# Flags --------------------------------------------------------------------------------------------


def parse_flags(
    program: str,
    config_type: type[Config] | Mapping[str, type[Config]],
    args: Sequence[str],
    *,
    paired: Sequence[str] = (),
) -> Config:
    """Parse flags into settings.

    Args:
        program: Name of the command.
        config_type: Dataclass of the settings, or one for each subcommand by its name.
        args: Command line without the program.
        paired: Boolean settings that also get the opposite flag, `--no-x`.

    Raises:
        UsageError: `__post_init__` of the dataclass raised a ValueError.
        SystemExit: After --help; or a flag is unknown, missing or of the wrong type.
    """
    if isinstance(config_type, Mapping):
        kinds = [
            Annotated[_flags_of(kind, paired), tyro.conf.subcommand(name)]
            for name, kind in config_type.items()
        ]
        flags_type: Any = tyro.conf.OmitSubcommandPrefixes[Union[tuple(kinds)]]  # noqa: UP007
        text = f"Commands of {program}."
    else:
        flags_type = _flags_of(config_type, paired)
        text = inspect.cleandoc(config_type.__doc__ or "")
    flags = tyro.cli(
        flags_type,
        prog=program,
        description=f"{text}\n--version prints the version.",
        args=args,
        config=(tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes),
    )
    try:
        return cast(Config, _settings(flags))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _settings(flags: Any) -> Any:
    """Checked settings from `flags`, an instance of a type made by `_flags_of`."""
    kind = flags.config_type
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(kind)}
    return kind(**values)


def _flags_of(config_type: type[Any], paired: Sequence[str]) -> type[Any]:
    """A copy of the dataclass for tyro: unchecked, without uninformative defaults."""
    changed: dict[str, Any] = {}
    helps = _helps(config_type)
    for name, kind in get_type_hints(config_type, include_extras=True).items():
        hint = tyro.conf.arg(help=helps.get(name), help_behavior_hint=_shown_default)
        changed[name] = Annotated[kind, hint]
        if kind is bool and name not in paired:
            changed[name] = tyro.conf.FlagCreatePairsOff[changed[name]]
    names: dict[str, Any] = {
        "__annotations__": changed,
        "__doc__": config_type.__doc__,
        "__post_init__": _unchecked,
        "config_type": config_type,
    }
    return type(config_type.__name__, (config_type,), names)


def _unchecked(_: object) -> None:
    """Skip the check; `parse_flags` does it and reports errors in one line, not in tyro's box."""


def _helps(config_type: type[Any]) -> dict[str, str]:
    """Docstrings of fields, each on one line except for items that start with a dash."""
    found: dict[str, str] = {}
    for kind in reversed(config_type.__mro__[:-1]):
        (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body
        for field, text in pairwise(cast(ast.ClassDef, tree).body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(doc))):
                    found[name] = re.sub(r"\s*\n\s*(?!\s|- )", " ", doc.strip())
                case _:
                    pass
    return {name: re.sub(r"\n\s+", "\n", doc) for name, doc in found.items()}


def _shown_default(default: str) -> str:
    """The default shown in a flag's help; empty if it only means that the flag is absent."""
    return "" if default in ("None", "False", "") else f"(default: {default})"
