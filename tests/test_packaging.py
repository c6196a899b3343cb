"""What is built is what is meant: wheels and source archives are built from a copy of the tree, installed, and used."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import stabkit

EXTENSION = "stabkit/hooks/statistics/_one_pass"
IGNORED = ("build", "dist", "__pycache__", "*.so", "*.egg-info", "runs")
SHIPPED = ("stabkit", "hooks", "analyzers", "tests", "examples", "benchmarks")
HAS_COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is not None
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}

Build = Callable[..., Path]
Python = Callable[..., str]


def run(*command: object, cwd: Path, **env: str) -> str:
    """What a command printed; it must succeed."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a checkout holds, so that building leaves nothing behind and finds nothing stale."""
    root, target = Path(__file__).resolve().parent.parent, tmp_path_factory.mktemp("tree")
    for path in root.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, target)
    for name in SHIPPED:
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns(*IGNORED))
    return target


def data(tree: Path) -> set[str]:
    """What else a wheel must hold: pages, scripts, figures that were measured."""
    places = [(tree / "stabkit", ""), (tree / "analyzers", "stabkit/")]
    found = {
        prefix + path.relative_to(tree).as_posix()
        for folder, prefix in places
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert {"stabkit/py.typed", "stabkit/dashboard/static/index.js", "stabkit/report/page/chart.js"} <= found
    return found


def build_wheel(tree: Path, directory: Path, *options: str, **env: str) -> Path:
    """A wheel of the tree; without isolation, and so without the network, unless told otherwise."""
    again = shutil.copytree(tree, directory / "tree")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *(options or ["--no-build-isolation"])]
    run(*command, "-w", directory, again, cwd=directory, **env)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it is built here."""
    return build_wheel(tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def pure_wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a machine without a compiler."""
    return build_wheel(tree, tmp_path_factory.mktemp("pure"), **NO_COMPILER)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the wheel is installed in."""
    return install(wheel, tmp_path_factory.mktemp("installed"))


def install(wheel: Path, folder: Path) -> Path:
    """Install a wheel into a folder of its own."""
    folder.mkdir(exist_ok=True)
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    return folder


def python(folder: Path, cwd: Path, *args: str) -> str:
    """What Python printed with that folder at the front of its path."""
    # With -S and the site packages by hand: without the finder of an editable installation, which could hide the folder.
    packages = sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]
    return run(sys.executable, "-S", *args, cwd=cwd, PYTHONPATH=os.pathsep.join([str(folder), *packages]))


def names(wheel: Path) -> set[str]:
    """The files in a wheel."""
    return set(zipfile.ZipFile(wheel).namelist())


def described(wheel: Path, name: str) -> Message:
    """One of the files in a wheel's dist-info."""
    archive = zipfile.ZipFile(wheel)
    (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
    return Parser().parsestr(archive.read(path).decode())


def modules(tree: Path) -> set[str]:
    """Every module of the tree, as it is called in the wheel."""
    found = {path.relative_to(tree).as_posix() for path in (tree / "stabkit").rglob("*.py")}
    for room in ("hooks", "analyzers"):
        found |= {f"stabkit/{path.relative_to(tree).as_posix()}" for path in (tree / room).rglob("*.py")}
    return found


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path, tree: Path) -> None:
    held = {name for name in names(wheel) if ".dist-info/" not in name}
    assert {name for name in held if name.endswith(".py")} == modules(tree)
    assert "stabkit/py.typed" in held
    assert {name.partition("/")[0] for name in held} == {"stabkit"}, "hooks and analyzers are packages of stabkit"
    assert not [name for name in held if name.endswith((".c", ".h", ".pyc"))]


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C compiler")
def test_the_wheel_holds_the_extension_and_is_named_after_it(wheel: Path) -> None:
    assert [name for name in names(wheel) if name.startswith(EXTENSION)]
    assert described(wheel, "WHEEL")["Root-Is-Purelib"] == "false"
    assert not wheel.stem.endswith("-any")
    if sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert "-cp310-abi3-" in wheel.name


@pytest.mark.slow
def test_a_wheel_without_the_extension_fits_every_platform(pure_wheel: Path, tree: Path) -> None:
    assert pure_wheel.name == f"stabkit-{stabkit.__version__}-py3-none-any.whl"
    assert described(pure_wheel, "WHEEL")["Root-Is-Purelib"] == "true"
    assert {name for name in names(pure_wheel) if ".dist-info/" not in name} == modules(tree) | data(tree)


def test_the_metadata(wheel: Path, tree: Path) -> None:
    metadata = described(wheel, "METADATA")
    assert (metadata["Name"], metadata["Version"]) == ("stabkit", stabkit.__version__)
    assert metadata["License-File"] == "LICENSE"
    assert any(name.endswith("LICENSE") for name in names(wheel))
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (tree / "README.md").read_text().strip()


def test_the_version_is_told_twice_and_is_the_same(root: Path) -> None:
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    assert config["metadata"]["version"] == stabkit.__version__


@pytest.mark.slow
def test_installed_it_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    where = python(installed, tmp_path, "-c", "import stabkit; print(stabkit.__file__, list(stabkit.__path__))")
    assert where.split() == [str(installed / "stabkit/__init__.py"), f"['{installed / 'stabkit'}']"]
    assert "analyze" in python(installed, tmp_path, "-m", "stabkit", "--help")
    assert "SK101" in python(installed, tmp_path, "-m", "stabkit", "rules")
    code = "import sys, stabkit.hooks.monitor, stabkit.watch; print('hooks' in sys.modules, 'analyzers' in sys.modules)"
    assert python(installed, tmp_path, "-c", code).split() == ["False", "False"]


@pytest.mark.slow
def test_installed_it_has_a_command(installed: Path, tmp_path: Path) -> None:
    assert "analyze" in python(installed, tmp_path, str(installed / "bin" / "stabkit"), "--help")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C compiler")
def test_installed_it_measures_in_c(installed: Path, tmp_path: Path) -> None:
    code = "from stabkit.hooks.statistics import backend; print(backend())"
    assert python(installed, tmp_path, "-c", code).strip() == "c"


@pytest.mark.slow
def test_without_a_compiler_it_measures_all_the_same(pure_wheel: Path, tmp_path: Path) -> None:
    folder = install(pure_wheel, tmp_path / "installed")
    code = "from stabkit.hooks.statistics import backend; print(backend())"
    assert python(folder, tmp_path, "-c", code).strip() == "reference"


@pytest.mark.slow
def test_installed_it_works_from_the_root_of_a_checkout(installed: Path, tree: Path) -> None:
    """There the folder stabkit/ hides the installed package, and has no hooks/ in it."""
    code = "import sys, stabkit, stabkit.hooks, stabkit.analyzers; print(stabkit.__file__, 'hooks' in sys.modules)"
    assert python(installed, tree, "-c", code).split() == [str(tree / "stabkit/__init__.py"), "False"]
    assert "SK101" in python(installed, tree, "-m", "stabkit", "rules")


@pytest.mark.slow
def test_a_wheel_from_the_source_archive_is_the_same(wheel: Path, tree: Path, tmp_path: Path) -> None:
    again = shutil.copytree(tree, tmp_path / "tree")
    run(sys.executable, "-m", "build", "-o", tmp_path / "dist", again, cwd=tmp_path)  # the wheel is built from the archive
    (built,) = (tmp_path / "dist").glob("*.whl")
    assert names(built) == names(wheel)
    assert built.name == wheel.name

    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    kept = (".py", ".c", ".h", ".npz")
    wanted = {p.relative_to(tree).as_posix() for room in SHIPPED for p in (tree / room).rglob("*") if p.suffix in kept}
    assert wanted <= held
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml", "setup.py"} <= held


@pytest.mark.slow
def test_it_installs_into_an_environment_of_its_own(tree: Path, tmp_path: Path) -> None:
    """Isolated from what is installed here, as on a user's machine: the build requirements are fetched."""
    wheel = build_wheel(tree, tmp_path, "--use-pep517")
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    own = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(own, "-m", "pip", "install", "-q", "--no-deps", wheel, "click", cwd=tmp_path)
    assert stabkit.__version__ in run(own, "-m", "stabkit", "--version", cwd=tmp_path, PYTHONPATH="")
