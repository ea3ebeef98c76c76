"""How far a sync is, drawn where somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ProgressBar:
    """A progress bar on standard error; silent for machines and where standard error is no terminal."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent or not sys.stderr.isatty()
        self._bar: Any = None

    def show(self, told: dict[str, Any]) -> None:
        """Draw a sync's progress: `done` of `total` files, `chunks` so far, in `seconds`."""
        if self._silent:
            return
        if self._bar is None:  # a server that syncs nothing loads nothing for it
            self._bar = self._begun()
        (task,) = self._bar.task_ids
        rate = told["chunks"] / told["seconds"] if told["seconds"] else 0.0
        self._bar.update(
            task, completed=told["done"], total=told["total"] or None, chunks=f"{told['chunks']:,} chunks, {rate:,.0f}/s"
        )

    def stop(self) -> None:
        """Take the bar away; safe to call again."""
        if self._bar is not None:
            self._bar.stop()

    def _begun(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TextColumn("files, {task.fields[chunks]}"))
        bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        bar.add_task("", total=None, chunks="")
        bar.start()
        return bar


@contextmanager
def progress_bar(silent: bool = False) -> Iterator[ProgressBar]:
    """A progress bar for the length of a block."""
    bar = ProgressBar(silent)
    try:
        yield bar
    finally:
        bar.stop()
