"""A small corpus, a retriever over it, embeddings that need no model, and a runtime in files."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine

from agents.runtime import Runtime
from agents.text import coverage, terms, words
from retrieval.types import Passage

HANDBOOK = """\
# Handbook

## Vacation

Employees get 30 days of paid vacation a year. Vacation must be requested two weeks before it begins. \
Unused days expire on 31 March of the following year.

## Sick leave

Call in sick before 9 am on the first day. A doctor's note is needed from the third day on.

## Tools

### Installing the client

Install the client with pip:

```bash
pip install acme-client
```

The client reads its settings from `acme.toml`.

### Deleting a table

To delete a table, call `drop` with its name:

```python
client.drop("orders")
```

A deleted table can be restored for seven days.

The client supports:

- Linux on x86 and ARM
- macOS 13 and later
- Windows 11
"""


def cut(text: str, source: str = "handbook.md") -> list[Passage]:
    """A passage for each second-level section."""
    starts = [i for i in range(len(text)) if text.startswith("## ", i) and (i == 0 or text[i - 1] == "\n")]
    passages = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(text)], strict=True)):
        heading = text[start:end].split("\n", 1)[0].lstrip("# ")
        passages.append(
            Passage(f"p{number}", "d1", "main.default.docs", source, "Handbook", (heading,), text[start:end], start, end)
        )
    return passages


@pytest.fixture
def text() -> str:
    return HANDBOOK


@pytest.fixture
def passages() -> list[Passage]:
    return cut(HANDBOOK)


def vector(text: str) -> np.ndarray:
    """A hashed bag of stems: alike texts get alike vectors."""
    out = np.full(256, 1e-6, np.float32)
    for term, value in terms(text).items():
        out[int(hashlib.md5(term.encode()).hexdigest()[:6], 16) % 256] += value
    return out / np.linalg.norm(out)


async def embed(texts: Sequence[str]) -> np.ndarray:
    return np.stack([vector(t) for t in texts])


class Search:
    """A retriever over passages by word overlap; remembers what it was asked."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages, self.queries = list(passages), []

    async def __call__(self, query: str, *, k: int = 5) -> Sequence[Passage]:
        self.queries.append(query)
        wanted = terms(query)
        scored = []
        for passage in self.passages:
            share = coverage(wanted, terms(f"{passage.title} {' '.join(passage.heading)} {passage.text}"))
            scored.append(replace(passage, score=share, similarity=0.2 + 0.6 * share, lexical=share * len(words(query))))
        return sorted(scored, key=lambda p: -p.score)[:k]


@pytest.fixture
def search(passages: list[Passage]) -> Search:
    return Search(passages)


@pytest.fixture
def embedder() -> Callable:
    return embed


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    engine = create_engine(f"sqlite:///{tmp_path}/smalti.db")
    made = Runtime(engine, tmp_path / "checkpoints.db")
    yield made
    await made.close()
    engine.dispose()
