"""The embedded AI gateway: who asks, what they may, how much is left, and the record of every call."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from governance.call import Call, Caller, CallError, CallRecord, Event, current_call
    from governance.gateway import Gateway
    from governance.grants import Grant, Grants
    from governance.identity import Identity, Key
    from governance.journal import Journal
    from governance.limits import Limits
    from governance.policies import AiGatewayConfig, Policies
    from governance.routes import router

__all__ = [
    "AiGatewayConfig",
    "Call",
    "CallError",
    "CallRecord",
    "Caller",
    "Event",
    "Gateway",
    "Grant",
    "Grants",
    "Identity",
    "Journal",
    "Key",
    "Limits",
    "Policies",
    "current_call",
    "router",
]

_MODULES = {
    "call": ("Call", "CallError", "CallRecord", "Caller", "Event", "current_call"),
    "gateway": ("Gateway",),
    "grants": ("Grant", "Grants"),
    "identity": ("Identity", "Key"),
    "journal": ("Journal",),
    "limits": ("Limits",),
    "policies": ("AiGatewayConfig", "Policies"),
    "routes": ("router",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'governance' has no attribute {name!r}")
    return getattr(import_module(f"governance.{_HOMES[name]}"), name)
