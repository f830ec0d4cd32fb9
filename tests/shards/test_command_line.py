import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from im2sp import __version__
from im2sp.shards.command_line import UsageError, parse_flags, run_command


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


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nfrom dataclasses import dataclass\n"
        "from im2sp.shards.command_line import run_command\n"
        "@dataclass(frozen=True)\nclass Config:\n    '''Doc.'''\n"
        "def run(_):\n    for i in range(100_000):\n        print(i)\n"
        "sys.exit(run_command('prog', Config, run, []))\n"
    )
    command = f"{sys.executable} {program} | head -n 1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("0\n", "", 141)
