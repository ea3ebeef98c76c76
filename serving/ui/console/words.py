"""Times, durations, money and counts as the console writes them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any


def stamp(value: Any, form: str = "%Y-%m-%d %H:%M") -> str:
    """A time (Unix seconds or ISO 8601) as text in UTC; "" for none."""
    if value is None or value == "":
        return ""
    if not isinstance(value, int | float):
        with suppress(ValueError):
            moment = datetime.fromisoformat(str(value))
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).strftime(form)
        return str(value)
    return datetime.fromtimestamp(value, UTC).strftime(form)


def milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def dollars(value: float) -> str:
    return f"${value:,.2f}" if value >= 0.01 or not value else f"${value:.4f}"


def compact(value: float) -> str:
    """A count as short as a figure has room for."""
    if value < 100_000:
        return f"{value:,.0f}"
    return f"{value / 1e6:,.1f} M" if value >= 999_500 else f"{value / 1e3:,.0f} k"
