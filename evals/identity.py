"""What makes this server's answers, by hash: an evaluation asks again what another code, prompt, model or index would answer.

An endpoint depends on itself, and an agent on what its declaration names besides, and on what that names: endpoints, indexes. An
agent that no settings declare may use anything here. When the server was started, or an endpoint last touched, changes no answer.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evals.cache import code_digest, digest

ROOMS = Path(__file__).resolve().parent.parent
_PASSING = frozenset(
    (
        "id",
        "creator",
        "creation_timestamp",
        "last_updated_timestamp",
        "state",
        "permission_level",
        "config_version",
        "pending_config",
    )
)
"""Fields of an endpoint that say how it stands, not what it answers with."""
_SHARED = ("chat_model", "chat_base_url", "chat_timeout", "router", "functions", "mcp_servers", "tables")
"""Settings that any agent's answers may depend on."""
_OWN = (".py", ".json", ".txt", ".md", ".csv", ".jinja", ".j2")
"""Files beside an agent's builder that it may be made of."""


def identity(
    endpoint: str, endpoints: Iterable[Mapping[str, Any]], indexes: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The identity of an endpoint's answers, for `evals.cache.Cache`.

    Parameters
    ----------
    endpoints, indexes: all of the server, as its API lists them.
    settings: of the server, as JSON.
    """
    listed = {each["name"]: each for each in endpoints}
    declared = {each["name"]: each for each in settings.get("endpoints") or ()}
    content = {index["name"]: [index.get("encoder"), index.get("revision", index.get("synced_at"))] for index in indexes}
    agent = str(listed.get(endpoint, {}).get("task") or "").startswith("agent/")
    told: dict[str, Any] = {"prices": settings.get("prices")}
    rooms = ("serving", "governance")
    if agent:
        rooms = ("agents", "retrieval", *rooms)
        told |= {key: settings.get(key) for key in _SHARED}
        told["own"] = [_own_files(builder) for builder in _builders(declared.get(endpoint))]
    used = {endpoint} if not agent or endpoint in declared else {*listed, *content}
    grown = used if agent else set()
    while grown:  # what is named by what is used
        named = {name for each in grown for name in _named(declared.get(each), {*listed, *content})}
        grown = named - used
        used |= grown
    return {
        "code": code_digest({room: ROOMS / room for room in rooms}),
        "settings": digest([told, {name: each for name, each in declared.items() if name in used}]),
        "endpoints": digest({name: _lasting(each) for name, each in listed.items() if name in used}),
        "indexes": digest({name: each for name, each in content.items() if name in used}),
    }


def _lasting(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lasting(item) for key, item in value.items() if key not in _PASSING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def _named(declaration: Any, known: Iterable[str]) -> set[str]:
    """The endpoints and indexes whose names stand in a declaration; an index also goes by the last part of its name."""
    said = json.dumps(declaration, default=str) if declaration else ""
    return {name for name in known if f'"{name}"' in said or f'"{name.rpartition(".")[2]}"' in said}


def _builders(declaration: Mapping[str, Any] | None) -> list[str]:
    entities = (declaration or {}).get("config", {}).get("served_entities", ())
    return [entity["agent"]["builder"] for entity in entities if entity.get("agent")]


def _own_files(builder: str) -> str:
    """The hash of the files beside a builder, `./file.py:function` or `package.module:function`, that is none of the rooms'."""
    module = builder.partition(":")[0]
    if module.endswith(".py"):
        path = Path(module)
    else:
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            found = None
        path = Path(found.origin) if found and found.origin else None
    if path is None or not path.is_file() or ROOMS / "agents" in path.resolve().parents:
        return ""
    files = sorted(each for each in path.resolve().parent.iterdir() if each.suffix in _OWN and each.is_file())
    return digest([[each.name, each.read_bytes().hex()] for each in files if each.stat().st_size < 10_000_000])
