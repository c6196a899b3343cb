"""Coverage-guided fuzzing of everything that reads a log: an answer or a StabkitError, within bounded time and memory.

    python -m benchmarks.fuzz [--inputs 1000000] [--seed 0] [--targets runlog csv ...] [--write]

An input is a handful of files. It is made from one of the corpus by a few mutations and kept where it reaches a line of
stabkit that no input had reached. Python 3.12 and newer tell of new lines at next to no cost; before that one input in twenty
is traced. `--write` keeps the corpus in tests/breaking/corpus, where a fast test reads it again, and the figures in
benchmarks/results, every half minute: a run that is ended early counts, whatever ends it.
"""
