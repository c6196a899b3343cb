"""Which way the tensors of a step are measured: in one look after it, in one before and one after, or tensor by tensor."""

from __future__ import annotations

from torch.optim.optimizer import Optimizer

from stabkit.hooks.measurement import Measurement
from stabkit.hooks.once import Once, enough
from stabkit.hooks.optimizer import group_values
from stabkit.hooks.quick import Quick
from stabkit.hooks.roster import Roster
from stabkit.hooks.statistics.table import Table
from stabkit.hooks.transfer import Batch
from stabkit.hooks.trust import Trust

__all__ = ["begin"]


def begin(optimizer: Optimizer, roster: Roster, trust: Trust, exact_updates: bool, closure: bool, batch: Batch) -> Measurement:
    """Measure what must be seen before a step (see `Measurement` for the arguments)."""
    groups = group_values(optimizer)
    due = trust.due(groups)
    special = exact_updates or closure or due or roster.coarse or not roster.plain
    if trust.is_torch_adam and trust.derives and not special:
        if enough(optimizer, roster, groups):
            return Once(optimizer, roster, trust, groups, batch)
        table = Table(roster.parameters, optimizer.state)
        if table.look(moments=1):
            return Quick(optimizer, roster, trust, groups, table, batch)
    return Measurement(optimizer, roster, trust, exact_updates, closure, batch, due)
