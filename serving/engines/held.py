"""How much memory a model holds."""

from __future__ import annotations

import contextlib


def held(pid: int | None, *, children: bool = True) -> int:
    """Bytes of memory that a process and its children hold. Blocking."""
    import psutil

    held = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        held = process.memory_info().rss
        for child in process.children(recursive=True) if children else ():
            with contextlib.suppress(psutil.Error):
                held += child.memory_info().rss
    return held
