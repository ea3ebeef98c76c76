"""Following a folder: told soon after something in it changed, once for changes that come together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

SETTLE_MS = 200
"""Changes within this time of each other are one."""


def changes(path: Path, *, seconds: float | None = None, stop: threading.Event | None = None) -> Iterator[int]:
    """Yields how many files changed, each time some did. Blocking.

    Parameters
    ----------
    path: a folder or a file.
    seconds: ends after this long; None never does.
    stop: ends when it is set.
    """
    from watchfiles import watch

    until = None if seconds is None else time.monotonic() + seconds
    # Of a file its folder is watched: editors replace files.
    root = path if path.is_dir() else path.parent
    waited = watch(root, debounce=SETTLE_MS, step=50, rust_timeout=200, yield_on_timeout=True, stop_event=stop)
    for found in waited:
        count = len({name for _, name in found if path.is_dir() or Path(name) == path})
        if count:
            yield count
        if until is not None and time.monotonic() >= until:
            return
