"""What must not pass, on the way in and on the way out: personal data, keywords, topics, safety, and callables of one's own."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from governance.guardrails.guard import Guard
    from governance.guardrails.judges import Toolkit
    from governance.guardrails.rules import Hold, Rules

__all__ = ["Guard", "Hold", "Rules", "Toolkit"]

_HOMES = {"Guard": "guard", "Hold": "rules", "Rules": "rules", "Toolkit": "judges"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'governance.guardrails' has no attribute {name!r}")
    return getattr(import_module(f"governance.guardrails.{_HOMES[name]}"), name)
