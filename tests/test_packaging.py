"""Packages, import rules, what the wheel holds, what no file may hold."""

import ast
import graphlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["pipeline", "shards", "tools", "trainer"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TRAINER_FILES = 30
"""The trainer stays flat (DESIGN), so it may hold more files than a folder's dozen."""
NUM_PROGRAMS = 20
"""The programs of tools stand side by side; their parts are in its folders."""


def relative(path):
    return path.relative_to(ROOT).as_posix()


@cache
def imported_modules(path):
    """Absolute names of the modules a file imports, with the import's line."""
    package = ["im2sp", *path.relative_to(ROOT).parent.parts]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = ["", *(f".{alias.name}" for alias in node.names)]
            found += [(module + name, node.lineno) for name in names]
    return found


def imports_of(path, package):
    """Places where a file imports a package or something inside it."""
    return [
        f"{relative(path)}:{line} imports {name}"
        for name, line in imported_modules(path)
        if name == package or name.startswith(package + ".")
    ]


def tracked_files():
    """Files git knows; every file of the tree where there is no git."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = listing.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


# Packages -----------------------------------------------------------------------------------------


def test_the_package_list_names_every_folder_with_code():
    folders = {relative(p.parent) for name in PACKAGES for p in (ROOT / name).rglob("__init__.py")}
    packages = PROJECT["tool"]["setuptools"]["packages"]
    assert set(packages) == {"im2sp", *("im2sp." + f.replace("/", ".") for f in folders)}
    assert PROJECT["tool"]["setuptools"]["package-dir"] == {
        name: name.removeprefix("im2sp.").replace(".", "/") for name in packages
    }
    assert {relative(p.parent) for p in SOURCES} == folders
    assert sorted({f.split("/")[0] for f in folders}) == PACKAGES


def test_there_is_one_level_of_sub_packages():
    assert [relative(p) for p in SOURCES if len(p.relative_to(ROOT).parts) > 3] == []


def test_a_folder_holds_a_dozen_files_or_fewer():
    counts = Counter(relative(p.parent) for p in SOURCES if p.name != "__init__.py")
    limits = {"trainer": TRAINER_FILES, "tools": NUM_PROGRAMS}
    assert {f: n for f, n in counts.items() if n > limits.get(f, 12)} == {}


def test_tests_mirror_the_folders():
    folders = {relative(p.parent) for p in SOURCES}
    tests = [relative(p.parent) for p in (ROOT / "tests").glob("*/**/test_*.py")]
    assert {name.removeprefix("tests/") for name in tests} <= folders


def test_im2sp_itself_holds_no_code_but_its_version():
    held = {p.name for p in (ROOT / "im2sp").iterdir()} - {"__pycache__"}
    assert held == {"__init__.py", "py.typed"}
    assert (
        f'__version__ = "{PROJECT["project"]["version"]}"'
        in (ROOT / "im2sp/__init__.py").read_text()
    )


def test_the_root_of_a_clone_as_working_directory_holds_every_package():
    # -S hides an installation: what is found lies in the clone.
    program = "import im2sp.tools; print(im2sp.tools.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == (str(ROOT / "tools" / "__init__.py"), "")


def test_typings_link_to_the_packages():
    links = {p.name: os.readlink(p) for p in (ROOT / "typings/im2sp").iterdir()}
    expected = {name: f"../../{name}" for name in PACKAGES}
    assert links == expected | {"__init__.py": "../../im2sp/__init__.py"}


def test_console_scripts_name_a_function_that_exists():
    for target in PROJECT["project"]["scripts"].values():
        module, function = target.split(":")
        tree = ast.parse((ROOT / module.removeprefix("im2sp.").replace(".", "/")).with_suffix(
            ".py"
        ).read_text())  # fmt: skip
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, target


def test_every_dependency_is_pinned():
    pins = re.findall(r"^([\w.-]+)==[\w.]+$", (ROOT / "constraints.txt").read_text(), re.M)
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in wanted}
    assert names <= set(pins)
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text()
    assert not {"torchvision", "torchaudio", "timm"} & set(pins)


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory):
    """Names in a wheel built from the tracked files, without network."""
    setuptools = pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        copy = source / relative(path)
        if relative(path).split("/")[0] in {*PACKAGES, "im2sp"} or "/" not in relative(path):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    program = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    built = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True
    )
    assert built.returncode == 0, f"setuptools {setuptools.__version__}: {built.stderr[-2000:]}"
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


DATA_SUFFIXES = (".safetensors", ".model", ".gz", ".md", ".html", ".css", ".js")


def test_the_wheel_holds_the_packages_and_nothing_else(wheel_names):
    held = {n for n in wheel_names if ".dist-info/" not in n}
    shipped = [
        relative(p)
        for p in tracked_files()
        if relative(p).split("/")[0] in PACKAGES and p.suffix in (".py", *DATA_SUFFIXES)
    ]
    expected = {f"im2sp/{name}" for name in shipped} | {"im2sp/__init__.py", "im2sp/py.typed"}
    assert held == expected
    assert any(n.endswith("licenses/LICENSE") for n in wheel_names)


# Import rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "forbidden"),
    [
        ("pipeline", ["im2sp.trainer", "im2sp.tools"]),
        ("trainer", ["im2sp.pipeline", "im2sp.tools"]),
        ("shards", ["im2sp.pipeline", "im2sp.trainer", "im2sp.tools"]),
    ],
)
def test_packages_import_only_what_the_design_allows(name, forbidden):
    found = [
        place
        for path in SOURCES
        if relative(path).split("/")[0] == name
        for package in forbidden
        for place in imports_of(path, package)
    ]
    assert found == []


def node_of(module):
    """Sub-package or module that a dotted name lies in: `pipeline/job`, `shards/dataset`."""
    parts = module.split(".")[1:3]
    path = ROOT.joinpath(*parts)
    return "/".join(parts) if path.is_dir() or path.with_suffix(".py").is_file() else parts[0]


@pytest.mark.parametrize("name", PACKAGES)
def test_imports_between_sub_packages_have_no_cycle(name):
    graph = {}
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts[:2]
        if parts[0] == name and parts[1] != "__init__":
            node = "/".join(parts)
            modules = [m for m, _ in imported_modules(path) if m.startswith(f"im2sp.{name}.")]
            graph.setdefault(node, set()).update({*map(node_of, modules)} - {node, name})
    assert graph
    # Raises CycleError, which names the cycle.
    assert set(graphlib.TopologicalSorter(graph).static_order()) >= set(graph)


def test_torch_enters_shards_only_in_the_loader():
    shards = [p for p in SOURCES if relative(p).startswith("shards/") and p.parent.name != "loader"]
    assert [place for path in shards for place in imports_of(path, "torch")] == []


def test_only_command_lines_import_tyro():
    others = [
        p
        for p in SOURCES
        if p.name not in ("cli.py", "command_line.py") and relative(p).split("/")[0] != "tools"
    ]
    assert [place for path in others for place in imports_of(path, "tyro")] == []


def test_no_file_imports_a_package_by_its_bare_name():
    files = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    assert [place for path in files for name in PACKAGES for place in imports_of(path, name)] == []


def test_no_program_has_a_name_of_the_standard_library():
    """A program's folder comes first on the path, so such a name would hide the library's."""
    names = {
        path.stem for folder in ("tools", "tools/bench") for path in (ROOT / folder).glob("*.py")
    }
    assert names & set(sys.stdlib_module_names) == set()


def test_files_stay_short():
    long = {relative(p): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def modules_after(code):
    """Run Python code that prints or exits; its output, and whether torch was imported."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n" + code
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.splitlines()[-1] == "True"


@pytest.mark.parametrize("command", sorted(PROJECT["project"]["scripts"]))
def test_help_does_not_import_torch(command):
    module, function = PROJECT["project"]["scripts"][command].split(":")
    call = f"from {module} import {function}\nsys.argv = [{command!r}, '--help']\n{function}()"
    text, has_torch = modules_after(call)
    assert f"usage: {command}" in text
    assert not has_torch


def test_reading_shards_does_not_import_torch():
    assert modules_after("import im2sp.shards, im2sp.tools.bitcount") == ("", False)


def test_the_probe_sees_torch():
    assert modules_after("import torch") == ("", True)


# What no tracked file may hold --------------------------------------------------------------------

# Built from halves so that this file does not match itself.
FORBIDDEN = {
    "a path of one machine": "/" + "(work|home|root|opt)" + "/" + r"\w",
    "a registry's host": "|".join([r"py" + r"pi\.org", r"python" + r"hosted", r"npm" + r"js\.org"]),
    "an unpickling that can run code": "|".join(
        [
            "weights_only" + r"\s*=\s*False",
            "joblib" + r"\.load",
            r"(?<!\w)pickle" + r"\.loads?\(",
            "allow_pickle" + r"\s*=\s*True",
            r"\bimport " + "dill",
        ]
    ),
    "something unfinished": "TO" + r"DO\b|FIX" + r"ME\b|NotImplemented" + "Error",
}
TEXT_SUFFIXES = {
    *(".py", ".pyi", ".toml", ".md", ".txt", ".json", ".jsonl", ".cfg", ".yml", ""),
    *(".html", ".css", ".js"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what):
    pattern = re.compile(FORBIDDEN[what])
    found = [
        f"{relative(path)}:{number}: {line.strip()[:80]}"
        for path in tracked_files()
        if path.suffix in TEXT_SUFFIXES and not path.is_symlink()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_tracked_files_are_small():
    large = {
        relative(p): p.stat().st_size for p in tracked_files() if p.stat().st_size > 32_000_000
    }
    assert large == {}
