import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from tqdm import tqdm

from im2sp import __version__
from im2sp.shards.command_line import UsageError, parse_flags, print_message, run_command
from im2sp.shards.errors import shown


@dataclass(frozen=True, kw_only=True)
class Base:
    """Settings that a command shares."""

    size: int = 3
    """Size of
    the thing."""
    only: Literal["a", "b"] | None = None
    """Either:
    - a: the first,
      which is long
    - b: the second"""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"--size is {self.size}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    """Do it.

    Exit code: 0.
    """

    size: int = 4
    names: tuple[str, ...] = field(default=("x", "y"))
    """Names."""
    quiet: bool = False
    """Print less."""
    bars: bool = True
    """Show bars."""


def done(config: Base) -> None:
    print(config)


def run(args: list[str], action: Callable[[Config], int | None] = done, **more: str) -> int:
    return run_command("prog", Config, action, args, **more)


def test_settings_reach_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--size", "5", "--quiet", "--names", "z"]) == 0
    found = capsys.readouterr().out.strip()
    assert found == str(Config(size=5, quiet=True, names=("z",)))
    assert run([], lambda config: config.size) == 4


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    for part in (
        "[--no-bars] Do it. Exit code: 0. --version prints the version.",
        "--size INT Size of the thing. (default: 4)",
        "--only {a,b} Either: - a: the first, which is long - b: the second --names",
        "--quiet Print less. --no-bars Show bars. (default: True)",
    ):
        assert part in text
    assert "None" not in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr() == (f"im2sp {__version__}\n", "")


def test_paired_flags() -> None:
    found = parse_flags("prog", Config, ["--no-bars", "--bars"], paired=("bars",))
    assert found.bars
    assert not parse_flags("prog", Config, ["--no-bars"]).bars


def test_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    kinds: dict[str, type[Base]] = {"one": Base, "two": Config}
    assert run_command("prog", kinds, done, ["one", "--size", "9"]) == 0
    assert capsys.readouterr().out.strip() == str(Base(size=9))
    assert run_command("prog", kinds, done, ["two", "--quiet"]) == 0
    assert run_command("prog", kinds, done, ["two", "--size", "0"]) == 2
    assert run_command("prog", kinds, done, ["--help"]) == 0
    assert "Commands of prog." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--size", "0"], "prog: --size is 0; expected at least 1\n"),
        (["--size", "many"], "many"),
        (["--sise", "1"], "--sise"),
        (["--no-quiet"], "--no-quiet"),
        (["--only", "None"], "None"),
    ],
)
def test_wrong_usage_is_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


class OutOfMemoryError(RuntimeError):
    """Stand-in with the name of torch's exception."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("--out x: not a folder"), 2, "--out x: not a folder"),
        (ValueError("two\n  lines"), 1, "two lines"),
        (PermissionError(13, "Permission denied", "p/x"), 1, "p/x: Permission denied"),
        (ChildProcessError("cannot start"), 1, "cannot start"),
        (MemoryError(), 1, "no memory left; buy"),
        (OutOfMemoryError("16 GiB\nmore"), 1, "no memory left on the device: 16 GiB; buy"),
        (RuntimeError("can't allocate memory: 9"), 1, "no memory left: can't allocate memory: 9; "),
        (KeyboardInterrupt(), 130, "interrupted; again"),
    ],
)
def test_failures_are_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Config) -> None:
        raise error

    assert run([], fail, resume="again", memory_advice="buy") == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"prog: {message}")


def test_the_output_folder_is_held(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    def again(_: Config) -> int:
        assert (out / ".im2sp-lock").exists()
        return run_command("prog", Config, done, [], out=lambda _: out)

    assert run_command("prog", Config, again, [], out=lambda _: out) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"prog: --out {out}: another im2sp command is writing here")
    assert told.count("\n") == 1
    assert not out.exists()
    out.symlink_to(tmp_path / "nowhere")
    for place, what in ((out, "a link to nothing"), (Path(__file__), "not a folder")):
        assert run_command("prog", Config, done, [], out=lambda _, place=place: place) == 2
        assert capsys.readouterr().err == f"prog: --out {place}: {what}\n"


def test_a_url_is_no_folder_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Writing(Base):
        """Write."""

        out: Path
        """Folder."""

    assert run_command("prog", Writing, done, ["--out", "s3://me:word@b/x"]) == 2
    assert capsys.readouterr().err == "prog: --out s3://b/x: not a folder or file\n"
    assert not Path("s3:").exists()


def test_a_full_disk_under_torch_save_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: Config) -> None:
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    assert run([], fail) == 1
    assert capsys.readouterr().err == "prog: No space left on device\n"


def test_sigterm_is_143_and_the_handler_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run([], lambda _: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "prog: terminated\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_our_own_mistakes_are_not_hidden() -> None:
    def fail(_: Config) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run([], fail)


# Streams -----------------------------------------------------------------------------------------

HOSTILE = "a\x1b[2J\x07\r\x9b\u202eb\udc80é"
SHOWN = "a\\u001b[2J\\u0007\\r\\u009b\\u202eb\\udc80é"


def test_no_control_character_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def show(_: Config) -> None:
        print(HOSTILE)
        with tqdm([HOSTILE], desc=HOSTILE, file=sys.stderr) as bar:
            bar.set_postfix_str(HOSTILE)
            tqdm.write(HOSTILE, file=sys.stdout)
            with tqdm([1, 2], position=1) as below:
                list(below)
        print(HOSTILE, file=sys.stderr)
        print_message("prog", f"{HOSTILE}\n{HOSTILE}")
        raise ValueError(HOSTILE)

    assert run([], show) == 1
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\n{SHOWN}\n"
    said = "a\\u001b[2J\\u0007 \\u009b\\u202eb\\udc80é"
    assert err.endswith(f"\nprog: {said} {said}\nprog: {said}\n")
    bars = err.replace("\x1b[A", "").replace("\n", "").replace("\r", "")
    assert bars.isprintable()
    assert f"\r{SHOWN}:   0%" in err
    assert "\x1b[A" in err


def test_flags_are_escaped_and_styles_stay(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([f"--{HOSTILE}"]) == 2
    err = capsys.readouterr().err
    assert "\\u001b[2J" in err
    assert err.replace("\n", "").isprintable()

    def parse(_: object) -> Config:
        print("\x1b[1mbold\x1b[0m \x1b[2J")
        return Config()

    assert run_command("prog", Config, done, [], parse=parse) == 0
    assert capsys.readouterr().out.startswith("\x1b[1mbold\x1b[0m \\u001b[2J\n")


def test_a_stream_of_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii"))
    assert run([], lambda _: print("naïve")) == 0
    assert out.getvalue() == b"na\\xefve\n"


def test_shown() -> None:
    assert shown("line\nbreak\t.jpg") == "line\\nbreak\\t.jpg"
    text = json.dumps({"key": HOSTILE}, ensure_ascii=False)
    assert json.loads(shown(text)) == {"key": HOSTILE}


PROGRAM = """
import sys
from dataclasses import dataclass
from pathlib import Path
from im2sp.shards.command_line import print_message, run_command
from tqdm import tqdm
@dataclass(frozen=True)
class Config:
    'Doc.'
def run(_):
    for i in tqdm(range(5_000), mininterval=0):
        print(i)
    print_message("prog", "end")
    Path(sys.argv[1]).touch()
sys.exit(run_command('prog', Config, run, sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("redirected", "kept"),
    [
        ("| head -n 1", "0\n"),
        ("2>&1 | head -c 0", ""),
        ("<&- >&- 2>&-", ""),
        ("2>/dev/full", None),
        ("--help | head -c 0", ""),
    ],
)
def test_streams_that_nobody_reads(redirected: str, kept: str | None, tmp_path: Path) -> None:
    program, done = tmp_path / "program.py", tmp_path / "done"
    program.write_text(PROGRAM)
    command = f"{sys.executable} {program} {done} {redirected}; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ended.returncode == 0
    assert ended.stdout == ("".join(f"{i}\n" for i in range(5_000)) if kept is None else kept)
    assert "Traceback" not in ended.stderr
    assert "rror" not in ended.stderr
    assert done.exists() != ("--help" in redirected)


def test_a_full_disk_under_stdout_is_one_line(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, program, tmp_path / "done"],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "prog: No space left on device"


# Interrupts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["tyro", "numpy"])
def test_an_interrupt_during_imports_is_one_line(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    signal.pause()\n"
        "except BaseException:\n    raise ImportError('cannot import') from None\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "im2sp.shards.cli", tmp_path],
        capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr.count("\n")) == (130, 1)
    assert ended.stderr.endswith(": interrupted\n")


class Interrupting:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def drop_in_a_destructor() -> None:
    Interrupting()


def drop_by_a_bare_except() -> None:
    with suppress(BaseException):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("drop", [drop_in_a_destructor, drop_by_a_bare_except])
def test_an_interrupt_that_is_dropped_is_sent_again(
    drop: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Config) -> None:
        drop()
        signal.pause()

    assert run([], fail) == 130
    assert capsys.readouterr().err == "prog: interrupted\n"
