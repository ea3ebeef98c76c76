"""A real encoder, and indexes on a temporary state folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from retrieval import Encoder, Indexes


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    made = Encoder.load(tmp_path_factory.getbasetemp() / "encoder", threads=2)
    yield made
    made.close()


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """The encoder without quantisation."""
    return Encoder.load(tmp_path_factory.getbasetemp() / "encoder", threads=1, variant="fp32")


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
