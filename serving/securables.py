"""What grants are on, by name: whether it is there, and what it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.platform import Platform


def exists(platform: Platform, securable: str) -> bool:
    """Whether `endpoint:NAME`, `index:NAME`, `model:NAME`, `volume:NAME` or `connection:NAME` is there."""
    kind, _, name = securable.partition(":")
    rows = platform.indexes.over_rows
    if kind == "endpoint":
        return name in platform.endpoints
    if kind == "search_endpoint":
        return any(name == each.name for each in rows.endpoints.list())
    if kind == "model":
        return platform.registry.known(name)
    if kind == "volume":
        return platform.volumes.known(name)
    if kind == "connection":
        return platform.connections.find(name) is not None
    return rows.find(name) is not None or any(name == info.name for info in platform.indexes.list())


def named(platform: Platform, kind: str, identifier: str) -> str:
    """The name of the endpoint with this id, or what was given."""
    kinds = {"endpoint": platform.endpoints, "search_endpoint": platform.indexes.over_rows.endpoints.list()}
    found = [each.name for each in kinds.get(kind, ()) if each.id == identifier]
    return found[0] if found else identifier
