"""The command line: its surface, its exit codes in processes of their own, and that nothing ends in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from stabkit.cli import commands
from stabkit.runlog import RunLog, Stream

SAMPLE = Path(__file__).parent / "report" / "sample.py"
sys.path.insert(0, str(SAMPLE.parent))
import sample  # noqa: E402

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of three steps in two attempts."""
    return sample.write_run(tmp_path_factory.mktemp("logs") / "run", attempts=2)


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command line in this process, with the fake rules."""
    monkeypatch.setattr("stabkit.analyzers.ANALYZERS", sample.FAKES)

    def invoke(*args: Any) -> Result:
        result = CliRunner().invoke(commands, [str(arg) for arg in args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


@pytest.fixture
def stabkit(root: Path) -> Run:
    """The command line in a process of its own; `fakes=True` puts the fake rules in place of the real ones."""

    def run(*args: Any, fakes: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
        command = [str(SAMPLE)] if fakes else ["-m", "stabkit"]
        done = subprocess.run(
            [sys.executable, *command, *map(str, args)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), **env},
            capture_output=True,
            text=True,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def test_the_surface_is_frozen() -> None:
    """Whoever adds a command or an option changes this list, knowing that it stays for good."""
    surface = {
        name: sorted(option for parameter in command.params for option in parameter.opts)
        for name, command in commands.commands.items()
    }
    assert surface == {
        "analyze": [
            "--attempt", "--fail-on", "--follow", "--format", "--ignore", "--map", "--require", "--select", "--wait", "paths",
        ],
        "compare": ["--attempts", "--format", "--html", "--map", "a", "b"],
        "demo": ["--directory", "--seed", "--steps"],
        "explain": ["rule"],
        "info": ["--attempt", "--map", "path"],
        "report": ["--attempt", "--ignore", "--map", "--output", "--select", "-o", "path"],
        "rules": [],
    }
    choices = {p.name: list(p.type.choices) for p in commands.commands["analyze"].params if isinstance(p.type, click.Choice)}
    assert choices == {"format": ["text", "json", "html", "github", "sarif"], "fail_on": ["info", "warning", "error"]}


def test_help_imports_nothing_heavy(root: Path) -> None:
    heavy = {"torch", "scipy", "numpy", "rich", "tensorboard", "stabkit.runlog", "stabkit.analyzers"}
    code = f"""
import sys
from stabkit.cli import main
sys.argv = ["stabkit", "--help"]
try:
    main()
finally:
    assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True)


def test_help_answers_at_once(stabkit: Run) -> None:
    took = []
    for _ in range(5):
        start = time.perf_counter()
        assert stabkit("--help").returncode == 0
        took.append(time.perf_counter() - start)
    assert min(took) < 0.5  # about 0.2 s on an idle machine; the best of five, for others may be at work on it


def test_exit_code_0_when_nothing_is_found(stabkit: Run, log: Path) -> None:
    done = stabkit("analyze", log, "--select", "SK902", fakes=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{log}: clear — 1 of 1 rule looked; 3 not asked, 3 steps; see the notes on the log\n")


def test_exit_code_1_when_something_is_found(stabkit: Run, log: Path) -> None:
    done = stabkit("analyze", log, fakes=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith(f"{log}: 1 warning, 1 info in 3 steps — always-ill at step 2 (w)\n")
    assert "there is no light" in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ("analyze",),
        ("analyse", "x"),
        ("analyze", "x", "--select", "SK777"),
        ("explain", "SK777"),
        ("info", "x", "--attempt", "y"),
    ],
)
def test_exit_code_2_for_wrong_usage(stabkit: Run, args: tuple[str, ...]) -> None:
    done = stabkit(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_exit_code_3_when_a_required_rule_could_not_look(stabkit: Run, log: Path) -> None:
    done = stabkit("analyze", log, "--require", "SK9", fakes=True)
    assert done.returncode == 3
    assert done.stderr == f"stabkit: {log}: SK903 always-blind is required and could not look: there is no light\n"


def write_bytes(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def newer_log(path: Path) -> Path:
    """A log of a later format."""
    from stabkit.runlog.writer import RunWriter

    writer = RunWriter(path, {})
    writer.manifest.schema = 99
    writer.note_facts()
    writer.close()
    return path


UNREADABLE: dict[str, Callable[[Path], Path]] = {
    "missing": lambda here: here / "nowhere",
    "an empty directory": lambda here: here,
    "a file of another program": lambda here: write_bytes(here / "x.csv", b"article,price\n1,2\n"),
    "a directory of another program": lambda here: write_bytes(here / "x" / "notes.txt", b"\x00\xff").parent,
    "nothing but noise": lambda here: write_bytes(here / "x" / "rank00000" / "run.json", os.urandom(999)).parent.parent,
    "a directory where a file should be": lambda here: write_bytes(here / "x/rank00000/run.json/y", b"").parents[2],
    "a log of a later version": lambda here: newer_log(here / "x"),
    "a name that goes through a file": lambda here: write_bytes(here / "x", b"") / "y",
    "a name too long for any file": lambda here: here / ("x" * 5000),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_exit_code_3_when_nothing_is_readable(what: str, stabkit: Run, tmp_path: Path) -> None:
    done = stabkit("analyze", UNREADABLE[what](tmp_path))
    assert done.returncode == 3
    assert "fault of stabkit" not in done.stderr
    if what != "nothing but noise":  # of which at least the damage can be told
        assert done.stdout == ""
        assert done.stderr.startswith("stabkit: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("what", sorted(set(UNREADABLE) - {"nothing but noise"}))
def test_info_refuses_them_likewise(what: str, invoke: Any, tmp_path: Path) -> None:
    result = invoke("info", UNREADABLE[what](tmp_path))
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("stabkit: ")
    assert "fault of stabkit" not in result.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a directory that its owner may not read")
def test_exit_code_3_for_a_directory_that_may_not_be_read(stabkit: Run, tmp_path: Path) -> None:
    tmp_path.chmod(0)
    done = stabkit("analyze", tmp_path)
    tmp_path.chmod(0o700)
    assert (done.returncode, done.stdout) == (3, "")


def test_one_unreadable_path_does_not_stop_the_others(stabkit: Run, log: Path, tmp_path: Path) -> None:
    done = stabkit("analyze", tmp_path / "nowhere", log, fakes=True)
    assert done.returncode == 3
    assert done.stderr.startswith(f"stabkit: there is no {tmp_path / 'nowhere'}")
    assert done.stdout.endswith("\n2 paths: findings in 1, nothing found in 0, 1 could not be read\n")


def test_json_stays_json_when_a_path_cannot_be_read(stabkit: Run, log: Path, tmp_path: Path) -> None:
    done = stabkit("analyze", log, tmp_path / "nowhere", "--format", "json", fakes=True)
    assert done.returncode == 3
    first, second = json.loads(done.stdout)["runs"]
    assert [outcome["status"] for outcome in first["outcomes"]] == ["found", "clear", "not-applicable", "found"]
    assert second == {"path": str(tmp_path / "nowhere"), "error": done.stderr.removeprefix("stabkit: ").rstrip("\n")}


def test_a_failing_rule_is_told_and_the_others_speak(invoke: Any, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = (sample.Fake("SK904", "always-broken", "broken"), sample.FAKES[1])
    monkeypatch.setattr("stabkit.analyzers.ANALYZERS", fakes)
    result = invoke("analyze", log)
    assert "clear — 1 of 2 rules looked; 1 could not" in result.stdout
    assert "  SK904 always-broken: KeyError: 'eps'\n" in result.stdout


def test_a_reader_that_breaks_is_a_fault_of_ours_and_no_traceback(
    invoke: Any, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("stabkit.sources.load", broken)
    for command in ("analyze", "info"):
        result = invoke(command, log)
        assert result.exit_code == 3
        assert "a fault of stabkit itself (ZeroDivisionError: oops). Please report it" in result.stderr


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        ((), ["SK901", "SK902", "SK903", "SK951"]),
        (("--select", "SK901,always-well"), ["SK901", "SK902"]),
        (("--select", "sk902", "--select", "SK95"), ["SK902", "SK951"]),
        (("--select", "SK9xx", "--ignore", "SK90"), ["SK951"]),
        (("--ignore", "Always-Ill , SK951"), ["SK902", "SK903"]),
    ],
)
def test_rules_are_chosen_by_code_name_and_family(options: tuple[str, ...], codes: list[str], invoke: Any, log: Path) -> None:
    run = json.loads(invoke("analyze", log, "--format", "json", *options).stdout)["runs"][0]
    assert [outcome["rule"] for outcome in run["outcomes"]] == codes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--select", "alwayswell"), "there is no rule 'alwayswell' (did you mean always-well"),
        (("--ignore", ""), "Known are SK901 always-ill, SK902 always-well"),
        (("--select", "SK1"), "there is no rule 'SK1'"),
        (("--select", "SK901", "--ignore", "SK901"), "leave no rule to ask"),
        (("--require", "SK901", "--ignore", "SK901"), "--require names what --select or --ignore leave out: SK901"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(options: tuple[str, ...], message: str, invoke: Any, log: Path) -> None:
    result = invoke("analyze", log, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("threshold", "select", "code"),
    [
        ("info", "SK951", 1),
        ("warning", "SK951", 0),
        ("warning", "SK901", 1),
        ("error", "SK901", 0),
        ("info", "SK902", 0),
    ],
)
def test_fail_on_sets_from_which_severity_the_exit_code_is_1(
    threshold: str, select: str, code: int, invoke: Any, log: Path
) -> None:
    assert invoke("analyze", log, "--fail-on", threshold, "--select", select).exit_code == code


def test_a_log_without_a_step_has_nothing_to_judge(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = RunLog(streams=(Stream(np.empty(0, np.int64)),))
    monkeypatch.setattr("stabkit.sources.load", lambda *args: begun)
    result = invoke("analyze", "runs/a", "--select", "SK902")
    assert result.exit_code == 3
    assert "not judged — none of 1 rule looked" in result.stdout


def test_an_attempt_that_is_not_there_is_wrong_usage(invoke: Any, log: Path) -> None:
    assert invoke("analyze", log, "--attempt", "0").exit_code == 1
    for command in ("analyze", "info"):
        result = invoke(command, log, "--attempt", "7")
        assert (result.exit_code, "there is no attempt 7" in result.stderr) == (2, True)


def test_info_tells_of_every_attempt(invoke: Any, log: Path) -> None:
    result = invoke("info", log)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{log}: 3 steps, 2 attempts, 1 tensor, 6 parameters, ")
    assert "\nattempt 0     1 to 3;" in result.stdout
    assert "\nattempt 1     1 to 3;" in result.stdout


def test_rules_lists_every_rule(invoke: Any) -> None:
    result = invoke("rules")
    assert result.exit_code == 0
    assert [line.split()[:2] for line in result.stdout.splitlines() if line.startswith("SK")] == [
        [fake.rule.code, fake.rule.name] for fake in sample.FAKES
    ]


def test_explain_takes_a_code_or_a_name(invoke: Any) -> None:
    pages = [invoke("explain", name) for name in ("SK901", "sk901", "Always-Ill")]
    assert len({page.stdout for page in pages}) == 1
    assert pages[0].stdout.startswith("SK901 always-ill  warning, since 0.1\n")
    assert "loss, weight_norm per tensor" in pages[0].stdout


def test_explain_suggests_what_was_meant(invoke: Any) -> None:
    result = invoke("explain", "allways-ill")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("stabkit: there is no rule allways-ill (did you mean always-ill")


@pytest.mark.skipif(os.name == "nt", reason="pipes close otherwise there")
@pytest.mark.parametrize(
    "args", ["rules", "--help", "explain SK901", "analyze {log}", "analyze {log} --format json", "info {log}"]
)
def test_a_reader_that_goes_away_is_no_fault(args: str, root: Path, log: Path) -> None:
    read, write = os.pipe()
    os.close(read)  # nobody reads: the first write already finds the pipe closed
    done = subprocess.run(
        [sys.executable, SAMPLE, *args.format(log=log).split()],
        env={**os.environ, "PYTHONPATH": str(root)}, stdout=write, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(root: Path, log: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, SAMPLE, "analyze", log],
            env={**os.environ, "PYTHONPATH": str(root)}, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (3, "stabkit: the output: No space left on device\n")


def test_ctrl_c_is_quiet(root: Path, log: Path) -> None:
    code = f"""
import os, signal, sys
import stabkit.runlog
from stabkit.cli import main
stabkit.runlog.load = lambda *args: os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["stabkit", "analyze", {str(log)!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "")


def test_a_locale_without_these_characters_gets_others(stabkit: Run, log: Path) -> None:
    for command in (("analyze", log), ("rules",), ("explain", "SK901"), ("info", log), ("--help",)):
        done = stabkit(*command, fakes=True, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
        assert done.stdout.isascii()
    assert " in 3 steps - always-ill at step 2 (w)\n" in stabkit("analyze", log, fakes=True, PYTHONIOENCODING="ascii").stdout


def test_no_colours_where_they_are_not_wanted(stabkit: Run, log: Path) -> None:
    assert "\x1b" not in stabkit("analyze", log, fakes=True).stdout
    assert "\x1b[1;33m" in stabkit("analyze", log, fakes=True, FORCE_COLOR="1", TERM="xterm-256color").stdout
    plain = stabkit("analyze", log, fakes=True, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm-256color").stdout
    assert "\x1b[1m" in plain  # bold is no colour
    assert "\x1b[1;33m" not in plain


def test_a_path_cannot_speak_to_the_terminal(invoke: Any) -> None:
    assert "\x1b" not in invoke("analyze", "evil\x1b[31m\nname").stderr
