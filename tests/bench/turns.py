"""What the checkpoints of a long thread weigh beside what was said on it.

`python -m tests.bench.turns [--turns 1000]` prints JSON: bytes of the text, of the database of checkpoints, their ratio, and the
seconds of CPU that a turn took, for the first and the last tenth. Questions and answers are random words, each turn's its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from sqlalchemy import create_engine

from agents.agent import Agent
from agents.graphs import rag
from agents.models import ScriptedModel
from agents.runtime import Runtime
from retrieval.types import Passage

ENDS = ("a", "en", "ly", "")
WORDS = [f"{a}{b}{c}" for a in ("tes", "mos", "gla", "bri", "vac") for b in ("ser", "aic", "ss", "dge") for c in ENDS]


async def measure(turns: int, folder: Path) -> dict[str, Any]:
    drawn = random.Random(0)

    def words(count: int) -> str:
        return " ".join(drawn.choices(WORDS, k=count))

    async def retrieve(query: str, *, k: int = 5) -> list[Passage]:
        return [Passage("p", "d", "i", "s.md", "S", (), words(60), 0, 30, 0.9, 0.8, 1.0)]

    engine = create_engine(f"sqlite:///{folder}/smalti.db")
    runtime = Runtime(engine, folder / "checkpoints.db")
    agent = Agent("a", rag.build, ScriptedModel(replies=[words(50) for _ in range(turns * 2)]), retrieve)
    took = []
    for turn in range(turns):
        begun = time.process_time()
        said = [HumanMessage(f"Question {turn}: {words(15)}?")]
        async for _ in runtime.stream(agent, said, thread_id="t", owner="user:ann", run_id=f"{turn:032x}"):
            pass
        took.append(time.process_time() - begun)
    told = await runtime.turns("t", "user:ann")
    assert len(told) == 2 * turns
    text = sum(len(turn.text.encode()) for turn in told)
    await runtime.close()
    engine.dispose()
    stored, part = (folder / "checkpoints.db").stat().st_size, max(turns // 10, 1)
    cpu = [round(sum(some) / len(some), 4) for some in (took[:part], took[-part:])]
    return {"turns": turns, "text_bytes": text, "checkpoint_bytes": stored, "ratio": round(stored / text, 2), "cpu_s": cpu}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=1_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(given.turns, Path(folder)))))


if __name__ == "__main__":
    main()
