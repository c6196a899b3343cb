"""The bar of long work, on a real terminal: it is there while something is waited for, and leaves no trace."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty", reason="pseudo-terminals are there on POSIX only")

WORK = """
import sys, time
from stabkit.cli import progress
progress.DELAY = float(sys.argv[1])
def slowly():
    for name in "ab":
        time.sleep(0.4)
        yield name
for name in progress.one_by_one(slowly(), ["runs/a", "runs/[b]\\x1b]0;evil"]):
    print(f"result {name}")
with progress.working("comparing"):
    time.sleep(0.3)
print("end")
"""


def on_terminal(delay: float, kind: str = "xterm") -> str:
    """What a terminal is sent."""
    ours, theirs = pty.openpty()
    command, about = [sys.executable, "-c", WORK, str(delay)], os.environ | {"TERM": kind}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=about):
        os.close(theirs)
        sent = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # nobody holds the other end any more
                break
            if not part:
                break
            sent += part
    os.close(ours)
    return sent.decode()


def screen(sent: str) -> list[str]:
    """The lines that are left, of what a terminal makes of the few commands that a bar uses."""
    lines, row = [""], 0
    for text, command in re.findall(r"([^\x1b\r\n]+)|(\r|\n|\x1b\[[0-9;?]*[A-Za-z])", sent):
        if command == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif command.endswith("A"):
            row = max(0, row - int(command[2:-1] or 1))
        elif command.endswith("K"):
            lines[row] = ""
        lines[row] += text
    return [line for line in lines if line]


def test_a_bar_says_what_is_done_and_how_far_and_goes_away() -> None:
    sent = on_terminal(0.05)
    assert "judging runs/a" in sent and "0/2" in sent and "1/2" in sent and "comparing" in sent
    assert "evil" in sent and "\x1b]" not in sent, "a name commands nothing"
    assert screen(sent) == ["result a", "result b", "end"]
    assert sent.count("\x1b[?25l") == sent.count("\x1b[?25h") == 3, "the cursor comes back"


@pytest.mark.parametrize(("delay", "kind"), [(30.0, "xterm"), (0.05, "dumb")])
def test_nothing_is_shown_of_what_is_soon_done_or_where_a_terminal_cannot(delay: float, kind: str) -> None:
    assert on_terminal(delay, kind) == "result a\r\nresult b\r\nend\r\n"


def test_a_pipe_gets_nothing_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", WORK, "0.05"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("result a\nresult b\nend\n", "")
