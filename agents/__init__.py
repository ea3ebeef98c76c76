"""Agents: graphs that answer, the runs that execute them on threads, and where they are found.

Importing this package is cheap; each public name loads its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.agent import Agent
    from agents.cassette import CassetteModel
    from agents.extract import make_reader
    from agents.models import ScriptedModel
    from agents.registry import AgentLoadError, load_builder
    from agents.router import make_router
    from agents.runtime import Runtime, ThreadBusy, ThreadNotFound
    from agents.state import AgentState, Citation, Embed, Reader, Reading, Route, Router, emit_citation, emit_delta, emit_step

_MODULES = {
    "make_reader": "extract",
    "CassetteModel": "cassette",
    "ScriptedModel": "models",
    "AgentLoadError": "registry",
    "load_builder": "registry",
    "make_router": "router",
    "Agent": "agent",
    "Runtime": "runtime",
    "ThreadBusy": "runtime",
    "ThreadNotFound": "runtime",
    "AgentState": "state",
    "Citation": "state",
    "Embed": "state",
    "Reader": "state",
    "Reading": "state",
    "Route": "state",
    "Router": "state",
    "emit_citation": "state",
    "emit_delta": "state",
    "emit_step": "state",
}

__all__ = [
    "Agent",
    "AgentLoadError",
    "AgentState",
    "CassetteModel",
    "Citation",
    "Embed",
    "Reader",
    "Reading",
    "Route",
    "Router",
    "Runtime",
    "ScriptedModel",
    "ThreadBusy",
    "ThreadNotFound",
    "emit_citation",
    "emit_delta",
    "emit_step",
    "load_builder",
    "make_reader",
    "make_router",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(import_module(f"agents.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
