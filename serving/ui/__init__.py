"""The pages people use: chat at `/`, console at `/console`, documents, sign-in.

`serving.ui.mount.mount(app, services)` adds them to a FastAPI app without importing NiceGUI; the first request of a page (or
`await pages.start()`) does. Every page asks through the same gateway as the API, with the signed-in caller's key.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.ui.mount import Pages
    from serving.ui.services import ConsoleData, Thread, ThreadMessage, Threads, UiServices
    from serving.ui.session import OneTimeCodes

__all__ = ["ConsoleData", "OneTimeCodes", "Pages", "Thread", "ThreadMessage", "Threads", "UiServices"]

_HOME = {"Pages": "mount", "OneTimeCodes": "session"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'services')}"), name)
