"""A corpus of correct training loops: idioms of PyTorch's documentation and of the trade, each a function that trains.

`IDIOMS` maps a name to a function of a `Loop`; `SCHEDULES` (in `schedules.py`) does so for learning rate schedules. Every loop
here is right: no rule may find anything of warning or above in its log. An idiom says by `Loop.note`, in plain torch, what
really happened in each step, so that a log can be held against it, and returns what must be bit for bit the same unwatched.

    run_idiom("gan", tmp_path / "run", fused=True)
    assert not stabkit.analyze(stabkit.load(tmp_path / "run")).findings
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.idioms import accumulating, changing, copying, mixed_precision, several
from tests.idioms.loop import Idiom, Loop, bits

__all__ = ["IDIOMS", "Idiom", "Loop", "bits", "run_idiom"]

_PARTS = (mixed_precision, accumulating, several, changing, copying)

IDIOMS: dict[str, Idiom] = {
    name: function for part in _PARTS for name, function in vars(part).items() if getattr(function, "is_idiom", False)
}
"""Every idiom by name."""


def run_idiom(name: str, logdir: Path | None, adopt: bool = False, **options: Any) -> Loop:
    """Train one idiom.

    Args:
        name: A key of `IDIOMS`.
        logdir: Where to record; None trains unwatched.
        adopt: Leave it to stabkit to find the optimizers.
        options: Of AdamW, such as fused=True or foreach=True.

    Returns:
        The loop, with its `truth` and the `bits` of what it trained.
    """
    loop = Loop(logdir, adopt, options)
    with loop.settled():
        loop.result = bits(IDIOMS[name](loop))
    return loop
