"""Serving: endpoints, the engines behind them, and the protocols clients speak to them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.dispatch import Dispatcher as Dispatcher
    from serving.endpoint import Endpoint as Endpoint
    from serving.endpoint import Endpoints as Endpoints

_HOMES = {"Dispatcher": "serving.dispatch", "Endpoint": "serving.endpoint", "Endpoints": "serving.endpoint"}

__all__ = ["Dispatcher", "Endpoint", "Endpoints"]


def __getattr__(name: str) -> Any:
    if home := _HOMES.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'serving' has no attribute {name!r}")
