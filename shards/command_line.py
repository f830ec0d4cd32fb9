"""Common code of all commands: flags, signals, one-line errors, exit codes, `--version`.

A command consists of a frozen dataclass of its settings, whose field docstrings are the help, and a
function that takes it. `ValueError` in `__post_init__` is wrong usage.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | failed, with one line on stderr |
| 2 | wrong usage |
| 130, 143 | interrupted by Ctrl-C, terminated by SIGTERM |
| 141 | the reader of the output, such as `head`, closed the pipe; nothing is printed |
"""

import ast
import dataclasses
import inspect
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_type_hints

import tyro

from im2sp import __version__
from im2sp.shards.files import output_lock

Config = TypeVar("Config")


class UsageError(ValueError):
    """Invalid command line."""


class _Terminated(BaseException):
    """SIGTERM was received."""


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
    try:
        with _sigterm_raises():
            if "--version" in args:
                print(f"im2sp {__version__}")
                return 0
            config = parse(args) if parse else parse_flags(program, config_type, args)
            folder = out(config)
            with nullcontext() if folder is None else _held(folder):
                code = run(config) or 0
            sys.stdout.flush()
            return code
    except SystemExit as left:  # --help or an unknown flag; tyro has printed it
        return left.code if isinstance(left.code, int) else 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Exception, KeyboardInterrupt, _Terminated) as error:
        code, message = _explained(error, resume, memory_advice)
        print_error(program, message)
        return code


@contextmanager
def _held(folder: Path) -> Generator[None]:
    if os.path.lexists(folder) and not folder.is_dir():
        what = "not a folder" if folder.exists() else "a link to nothing"
        raise UsageError(f"--out {folder}: {what}")
    with output_lock(folder):
        yield


def print_error(program: str, message: str) -> None:
    """Print `program: message` on stderr, in one line."""
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)


def _explained(error: BaseException, resume: str, memory_advice: str) -> tuple[int, str]:
    """Exit code and message of an expected exception; others are re-raised."""
    if isinstance(error, KeyboardInterrupt | _Terminated):
        code, word = (143, "terminated") if isinstance(error, _Terminated) else (130, "interrupted")
        return code, f"{word}; {resume}" if resume else word
    if isinstance(error, UsageError):
        return 2, str(error)
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        error = error.__context__  # torch.save on a full disk
    if isinstance(error, OSError):
        return (
            1,
            f"{error.filename}: {error.strerror}"
            if error.filename
            else error.strerror or str(error),
        )
    if isinstance(error, MemoryError):
        message = str(error) or "no memory left"
    elif isinstance(error, ValueError):
        return 1, str(error)
    # torch's out-of-memory errors on a GPU and on the CPU; torch is not imported here.
    elif type(error).__name__ == "OutOfMemoryError":
        message = f"no memory left on the device: {str(error).splitlines()[0]}"
    elif isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        message = f"no memory left: {str(error).splitlines()[0]}"
    else:
        raise error
    return 1, f"{message}; {memory_advice}" if memory_advice else message


@contextmanager
def _sigterm_raises() -> Generator[None]:
    """Turn SIGTERM into an exception so that files and processes are cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
