"""What calling a securable calls in turn, so that a grant on it brings along what it needs."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Engine

from serving.settings import Settings


def needs(settings: Settings, engine: Engine) -> Callable[[str], list[str]]:
    """`needed(securable)`: of an agent's endpoint its index and model, of an index the endpoints that embed for it.

    Clients of vector search look those endpoints up themselves when they open an index.
    """

    def needed(securable: str) -> list[str]:
        kind, _, name = securable.partition(":")
        if kind != "index":
            return settings.resources(securable)
        from retrieval.embed import Encoder
        from retrieval.rows.store import RowStore

        found = RowStore(engine).find(name)
        models = {found.spec.model, found.spec.query_model} if found else {Encoder.name.lower()}
        return [f"endpoint:{model}" for model in sorted(models) if model]

    return needed
