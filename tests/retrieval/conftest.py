"""A real encoder, and indexes on a temporary state folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from retrieval import Encoder, Indexes, RetrievalError, router
from tests.live import models

ROOT = "/api/2.0/vector-search"


@dataclass
class Who:
    """Who asks."""

    name: str
    admin: bool


@pytest.fixture(scope="session")
def encoder() -> Iterator[Encoder]:
    made = Encoder.load(models(), threads=2)
    yield made
    made.close()


@pytest.fixture(scope="session")
def exact() -> Encoder:
    """The encoder without quantisation."""
    return Encoder.load(models(), threads=1, variant="fp32")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/smalti.db", connect_args={"timeout": 30})
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    yield engine
    engine.dispose()


@pytest.fixture
def indexes(engine: sa.Engine, tmp_path: Path, encoder: Encoder) -> Iterator[Indexes]:
    made = Indexes(engine, tmp_path / "chroma", encoder)
    yield made
    made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three small documents about different things."""
    root = tmp_path / "docs"
    (root / "guides").mkdir(parents=True)
    (root / "glass.md").write_text(
        "# Glass\n\nMosaic tiles of glass are called smalti. They are poured, cooled and cut by hand.\n\n"
        "## Colours\n\nCobalt makes the glass blue. Gold leaf is sealed between two layers.\n"
    )
    (root / "guides" / "bread.md").write_text(
        "# Bread\n\nKnead the dough for ten minutes, then let it rest until it has doubled.\n\n"
        "## Oven\n\nBake at 230 degrees for forty minutes with steam.\n"
    )
    (root / "guides" / "client.txt").write_text(
        "Set max_retries to 3 and HTTPTimeout to 20 seconds.\n\nThe client retries on error E1047 only.\n"
    )
    return root


@pytest.fixture
async def api(indexes: Indexes) -> Any:
    """A client of the vector search API as its administrator, with an endpoint `e`; `calls` is what went by the gateway."""
    app = FastAPI()
    app.state.calls = []

    def caller(request: Request) -> Who:
        name = request.headers["authorization"].removeprefix("Bearer ")
        return Who(name, name == "root")

    async def invoke(request: Request, index: str, task: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        app.state.calls.append((index, payload))
        return await indexes.answer(index, payload)

    async def failed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RetrievalError)
        return JSONResponse({"error_code": error.code, "message": error.message}, error.status)

    app.add_exception_handler(RetrievalError, failed)
    app.include_router(router(indexes, caller=caller, invoke=invoke))
    headers = {"authorization": "Bearer root"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://smalti", headers=headers) as client:
        assert (await client.post(f"{ROOT}/endpoints", json={"name": "e", "endpoint_type": "STANDARD"})).status_code == 200
        client.calls = app.state.calls  # type: ignore[attr-defined]
        yield client
