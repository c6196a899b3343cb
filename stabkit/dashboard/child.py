"""The process beside TensorBoard that reads logs and judges them: a question a line comes in, an answer a line goes out.

Beside it, because a log of gigabytes takes memory and time: TensorBoard stays quick, and survives what this does not. It
ends with TensorBoard, when its standard input does.
"""

from __future__ import annotations

import json
import os
import sys
import warnings

from stabkit.beside import give_way

__all__ = ["COMMAND", "main"]

COMMAND = (
    sys.executable,
    "-c",
    "import sys, os; sys.path[:] = sys.argv[1].split(os.pathsep); from stabkit.dashboard.child import main; main()",
)
"""How it is started; the path of modules follows. `-m` would look for modules in the working directory first."""


def main() -> None:
    """Answer until nobody asks any more."""
    give_way(5)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints is no answer
    warnings.simplefilter("ignore")
    for line in sys.stdin.buffer:
        try:
            replies.write(_answer(line).encode() + b"\n")
            replies.flush()
        except BrokenPipeError:
            break


def _answer(line: bytes) -> str:
    from stabkit.dashboard.views import view
    from stabkit.errors import StabkitError
    from stabkit.report.escape import data

    try:
        return data(view(json.loads(line)))
    except (StabkitError, KeyError, IndexError) as error:
        return data({"error": str(error)})
    except OSError as error:
        return data({"error": f"{error.filename or 'the log'}: {error.strerror or error}"})
    except Exception as error:  # TensorBoard must go on, and so must the next question
        return data({"error": f"a fault of stabkit itself ({type(error).__name__}: {error})"})
