"""Makes many runs in a few processes, and lets no other producer do so at the same time."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.corpus.recipe import Recipe
from benchmarks.corpus.store import RUNS, make, ready

__all__ = ["produce", "sole_producer"]


def produce(recipes: Iterable[Recipe], jobs: int, runs: Path = RUNS, forward: bool = False) -> int:
    """Make what is missing, references first. Returns the number of runs that failed to be made.

    Where a reference fails, what is compared with it is left for the next time.
    """
    recipes = list(recipes)
    missing = [recipe for recipe in recipes if not ready(recipe, runs)]
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), *times)
    failed: set[str] = set()
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(jobs, context, initializer=end_with_parent) as pool,
    ):
        task = progress.add_task("corpus", total=len(recipes), completed=len(recipes) - len(missing))
        for wave in ([r for r in missing if r.twin is None], [r for r in missing if r.twin]):
            futures = {pool.submit(make, recipe, runs, forward=forward): recipe for recipe in wave if recipe.twin not in failed}
            for future in as_completed(futures):
                name = futures[future].id
                progress.update(task, advance=1, description=name)
                if error := future.exception():
                    failed.add(name)
                    progress.console.print(f"{name}: {type(error).__name__}: {error}")
    return sum(not ready(recipe, runs) for recipe in recipes)


def end_with_parent() -> None:
    """Let a worker end when its producer is killed: else it would write on beside the next one."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def sole_producer(runs: Path = RUNS) -> Iterator[None]:
    """Hold the lock of a folder of runs; it ends with the process that holds it, however that ends.

    Raises:
        RuntimeError: another process holds it.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with open(runs / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise RuntimeError(
                f"process {lock.read().strip() or 'unknown'} makes runs in {runs}: wait until it is done, or end it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
