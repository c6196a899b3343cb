"""How often stabkit's verdicts are right, on runs whose outcome is known: `python -m benchmarks.score`.

A run's label tells what went wrong and from which step on (`corpus`); its findings are *alarms* (`alarms`); `match` holds one
against the other, `tally` adds up, `bootstrap` and `shifted` say how much of it could be luck, `baselines` and `published` are
the others on the same runs, `remedy` trains again with what a finding advises, and `report` writes it all down.
"""
