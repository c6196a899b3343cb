"""The import arrows of the house, held by reading every file's imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOMS = {
    *("metric", "errors", "beside", "outbox", "outputs", "ending", "finding", "runlog", "hooks", "analyzers"),
    *("sources", "report", "compare", "dashboard", "live", "watch", "notebook", "demo", "cli"),
}
ALWAYS = {"metric", "errors", "__version__"}
ARROWS = {
    "metric": set(),
    "errors": set(),
    "beside": set(),
    "outbox": set(),
    "ending": set(),
    "outputs": {"outbox", "dashboard", "finding", "runlog"},
    "finding": set(),
    "runlog": set(),
    "hooks": {"runlog"},
    "analyzers": {"runlog", "finding"},
    "sources": {"runlog"},
    "report": {"finding", "runlog"},
    "compare": {"report", "runlog"},
    "dashboard": {"beside", "report", "analyzers", "finding", "runlog"},
    "live": {"beside", "analyzers", "finding", "report", "runlog"},
    "watch": {"outputs", "ending", "hooks", "runlog", "dashboard", "live", "finding"},
    "notebook": {"report", "analyzers", "finding", "runlog"},
    "demo": {"watch", "load", "analyze"},
    "cli": ROOMS - {"hooks", "cli"},
}


def modules(root: Path) -> list[tuple[str, Path]]:
    """(room, file) of every module but the package's own front door."""
    found = [(p.relative_to(root / "stabkit").parts[0].removesuffix(".py"), p) for p in (root / "stabkit").rglob("*.py")]
    found += [("hooks", p) for p in (root / "hooks").rglob("*.py")]
    found += [("analyzers", p) for p in (root / "analyzers").rglob("*.py")]
    return [(room, path) for room, path in found if room not in ("__init__", "__main__")]


def imports(path: Path) -> set[str]:
    """The rooms of stabkit that a file imports, and "relative", "hooks" or "analyzers" for imports no file may have."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            parts = (node.module or "").split(".")
            if parts == ["stabkit"]:
                found |= {alias.name for alias in node.names}
            elif parts[0] == "stabkit":
                found.add(parts[1])
            assert parts[0] not in ("hooks", "analyzers"), f"{path}: import it as stabkit.{parts[0]}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                assert parts[0] not in ("hooks", "analyzers"), f"{path}: import it as stabkit.{parts[0]}"
                if parts[0] == "stabkit" and len(parts) > 1:
                    found.add(parts[1])
    return found


def test_every_import_follows_an_arrow(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)} imports {target}"
        for room, path in modules(root)
        for target in imports(path)
        if target not in ALWAYS | ARROWS[room] | {room}
    ]
    assert not wrong


def test_every_room_has_its_arrows(root: Path) -> None:
    assert {room for room, _ in modules(root)} <= set(ARROWS)


@pytest.mark.parametrize(
    "what", ["stabkit", "stabkit.analyzers", "stabkit.cli", "stabkit.runlog", "stabkit.report", "stabkit.compare"]
)
def test_works_without_torch(what: str, root: Path) -> None:
    code = f"import sys, {what}; assert 'torch' not in sys.modules; assert 'hooks' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_every_package_is_in_the_wheel(root: Path) -> None:
    """A package missing from setup.cfg would be left out of the wheel in silence."""
    import configparser

    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    declared = set(config["options"]["packages"].split())

    def packages(folder: str) -> set[str]:
        return {p.parent.relative_to(root).as_posix().replace("/", ".") for p in root.glob(f"{folder}/**/__init__.py")}

    present = packages("stabkit") | {f"stabkit.{name}" for name in packages("hooks") | packages("analyzers")}
    assert declared == present
