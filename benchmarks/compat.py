"""Installs stabkit beside old and new versions of what it needs, and holds it to the acceptance and a part of the tests.

    python -m benchmarks.compat [ROW ...] [--keep]

A row is an environment of its own in a temporary folder, deleted afterwards. Torch from PyPI brings CUDA's libraries, so that a
row takes up to six gigabytes for as long as it lasts. Results go into benchmarks/results/compat.json, a row at a time, and the
page COMPAT.md is made of them. Interpreters are looked for as `pythonX.Y`, and where pyenv keeps them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OLDEST = ("numpy==1.24.4", "scipy==1.10.1", "click==8.1.0", "rich==12.0.0", "tensorboard==2.11.2", "google-crc32c==1.5.0")
"""What setup.cfg asks for at least."""
TESTS = (
    "tests/runlog/test_run.py", "tests/runlog/test_damage.py", "tests/hooks/test_safety.py", "tests/hooks/test_scaler.py",
    "tests/hooks/test_loops.py", "tests/hooks/test_finding_the_loss.py", "tests/dashboard/test_writer.py",
    "tests/dashboard/test_event_file.py", "tests/sources", "tests/report/test_text_report.py", "tests/breaking/test_corpus.py",
    "tests/breaking/test_faults_outside.py", "tests/breaking/test_two_threads.py", "tests/analyzers/test_edges.py",
)  # fmt: skip
"""Not those of the command line, which rest on click 8.2's way of running a command in a test; the acceptance runs commands."""
LEFT_OUT = (".git", ".venv", "build", "*.so", "*.egg-info", "__pycache__")


@dataclass(frozen=True)
class Row:
    """An environment.

    Attributes:
        python: Version of the interpreter, such as "3.10".
        torch: What is asked of pip.
        others: What else is held; the newest where nothing is.
    """

    python: str
    torch: str
    others: tuple[str, ...] = ()


ROWS = {
    "oldest": Row("3.10", "torch==2.4.0", OLDEST),
    "pinned": Row("3.11", "torch==2.13.0"),
    "between": Row("3.12", "torch==2.8.0"),
    "newest": Row("3.13", "torch"),
}


def interpreter(version: str) -> str:
    """Where a Python is. Raises SystemExit where there is none."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    found = str(kept[-1]) if kept else shutil.which(f"python{version}")
    if found is None:
        raise SystemExit(f"there is no Python {version} here")
    return found


def run(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)


def measure(name: str, keep: bool) -> dict[str, Any]:
    """Make the environment, install, and see what works."""
    row, begun = ROWS[name], time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"compat-{name}-"))
    result: dict[str, Any] = {"row": name, "date": str(date.today()), "python": row.python, "torch": row.torch}
    try:
        run(interpreter(row.python), "-m", "venv", folder / "venv", check=True)
        python = folder / "venv" / "bin" / "python"
        tree = folder / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        asked = (row.torch, *row.others, "pytest", "hypothesis", "expecttest", "setuptools")
        installed = run(python, "-m", "pip", "install", "-q", "--no-cache-dir", tree, *asked)
        if installed.returncode:
            return result | {"acceptance": "cannot be installed: " + installed.stderr.strip().splitlines()[-1]}
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        shutil.copy(tree / "benchmarks" / "acceptance.py", folder / "acceptance.py")
        accepted = run(python, folder / "acceptance.py", folder / "runs", cwd=folder, env=environment)
        if accepted.returncode:
            result["acceptance"] = accepted.stderr.strip().splitlines()[-1]
            print(accepted.stderr)
        else:
            result |= {"acceptance": "passed", "versions": json.loads(accepted.stdout.splitlines()[-1])}
        tests = ("-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"--basetemp={folder / 't'}", *TESTS)
        tested = run(python, *tests, cwd=tree, env=environment)
        told = re.sub(r"\x1b\[[0-9;]*m", "", tested.stdout).strip().splitlines()
        print(tested.stdout[-6000:])
        result["tests"] = _counted(told)
        result["seconds"] = round(time.monotonic() - begun)
        return result
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _counted(lines: list[str]) -> str:
    """Such as "212 passed, 3 skipped", counted from the dots where -q leaves the sum out."""
    dots = "".join(line.split()[0] for line in lines if re.fullmatch(r"[.FEsxX]+\s+\[ *\d+%\]", line))
    named = {".": "passed", "F": "failed", "E": "errors", "s": "skipped"}
    counts = [f"{dots.count(sign)} {word}" for sign, word in named.items() if sign in dots]
    return ", ".join(counts) or (lines[-1] if lines else "nothing ran")


def enter(result: dict[str, Any]) -> None:
    """Put a row down, in place of what it said before."""
    path = RESULTS / "compat.json"
    known = {one["row"]: one for one in (json.loads(path.read_text()) if path.exists() else [])} | {result["row"]: result}
    rows = [known[name] for name in ROWS if name in known]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "COMPAT.md").write_text(page(rows))


def page(rows: list[dict[str, Any]]) -> str:
    """The table."""
    names = ("torch", "numpy", "scipy", "click", "rich", "tensorboard", "google-crc32c", "statistics")
    lines = []
    for row in rows:
        found = row.get("versions", {})
        versions = [found.get(name, row.get(name, "")) for name in ("python", *names)]
        unseen = f"; not seen: {', '.join(found['unseen'])}" if found.get("unseen") else ""
        cells = (row["row"], *versions, row["acceptance"] + unseen, row.get("tests", ""), row["date"])
        lines.append(f"| {' | '.join(cells)} |")
    rule = "|---" * (len(names) + 5) + "|"
    return f"""# Old and new versions

`python -m benchmarks.compat`: each row an environment of its own. The acceptance is
[benchmarks/acceptance.py](../acceptance.py): watch a training, whose bits stay; load, judge and draw its log; find it in
TensorBoard. The tests are a part of the fast ones, named in `benchmarks/compat.py`.

| row | Python | {" | ".join(names)} | acceptance | tests | on |
{rule}
""" + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compat", description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--keep", action="store_true", help="do not delete the environments")
    options = parser.parse_args()
    for name in options.rows or ROWS:
        result = measure(name, options.keep)
        print(json.dumps(result, indent=1), flush=True)
        enter(result)


if __name__ == "__main__":
    main()
