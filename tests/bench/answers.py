"""A running server under questions: time to a full extractive answer, many streams at once, and random `kill -9`.

    python -m tests.bench.answers [--docs FOLDER] [--chunks 10000] [--questions 300] [--streams 200] [--kills 0] [--cores 0,1]

Prints one JSON object. The server is a process of its own with the gateway on, confined to `--cores`. Every answer that was
received is looked up in the journal afterwards; `lost` counts those that have no completed row.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.bench.ingest import replicate
from tests.bench.timing import percentiles
from tests.live import Live, start, stop

CHARACTERS_A_CHUNK = 460


def questions(docs: Path, count: int) -> list[str]:
    """Questions about what the documents' headings say, each asked differently so that no embedding is cached."""
    rng = random.Random(7)
    headings = [h for p in sorted(docs.rglob("*.md")) for h in re.findall(r"^#+ (.{8,80})$", p.read_text(errors="replace"), re.M)]
    forms = ("How does {} work with {}?", "What should I know about {} and {}?", "Explain {} compared to {}")
    return [rng.choice(forms).format(rng.choice(headings), rng.choice(headings)) for _ in range(count)]


def one_by_one(live: Live, asked: list[str]) -> tuple[dict[str, Any], list[str]]:
    times, answered = [], []
    with live.client() as client:
        for question in [*asked[:5], *asked]:
            began = time.perf_counter()
            answer = client.post("/v1/responses", json={"model": "assistant", "input": question})
            times.append((time.perf_counter() - began) * 1e3)
            assert answer.json()["status"] == "completed", answer.text
            answered.append(answer.headers["x-request-id"])
    return percentiles(times[5:]), answered


async def at_once(live: Live, asked: list[str]) -> tuple[dict[str, Any], list[str]]:
    answered: list[str] = []
    errors: list[str] = []
    times: list[float] = []

    async def ask(client: httpx.AsyncClient, question: str) -> None:
        body = {"model": "assistant", "messages": [{"role": "user", "content": question}], "stream": True}
        began = time.perf_counter()
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                lines = [line async for line in answer.aiter_lines() if line]
            if lines and lines[-1] == "data: [DONE]" and not any('"error"' in line[:20] for line in lines):
                answered.append(answer.headers["x-request-id"])
                times.append((time.perf_counter() - began) * 1e3)
            else:
                errors.append(lines[-1] if lines else "nothing came")
        except httpx.HTTPError as error:
            errors.append(repr(error))

    limits = httpx.Limits(max_connections=len(asked))
    began = time.perf_counter()
    async with httpx.AsyncClient(base_url=live.url, headers=live.headers, timeout=120, limits=limits, trust_env=False) as client:
        await asyncio.gather(*(ask(client, question) for question in asked))
    seconds = time.perf_counter() - began
    told = {
        "streams": len(asked),
        "errors": len(errors),
        "answers_a_second": round(len(asked) / seconds, 1),
        **percentiles(times),
    }
    return told | ({"first_error": errors[0]} if errors else {}), answered


def journal(home: Path) -> dict[str, int | None]:
    """Status by request id of every row; raises if one is there twice."""
    from governance.journal import Journal
    from serving.state import open_database

    with Journal(open_database(f"sqlite:///{home / 'smalti.db'}"), home / "journal", interval=None) as kept:
        rows = list(kept.rows())
    found = {row["databricks_request_id"]: row["status_code"] for row in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


def killed(live: Live, docs: Path, asked: list[str], rounds: int, **more: str) -> tuple[dict[str, Any], Live, list[str]]:
    """`kill -9` at random moments under load, each followed by a start; answers that were received whole."""
    rng = random.Random(11)
    acknowledged: list[str] = []
    starts = []

    async def load(until: float) -> None:
        async def worker(client: httpx.AsyncClient) -> None:
            while time.monotonic() < until + 5:
                try:
                    answer = await client.post("/v1/responses", json={"model": "assistant", "input": rng.choice(asked)})
                except httpx.HTTPError:
                    return
                if answer.status_code == 200:
                    acknowledged.append(answer.headers["x-request-id"])

        async with httpx.AsyncClient(base_url=live.url, headers=live.headers, timeout=30, trust_env=False) as client:
            workers = [asyncio.create_task(worker(client)) for _ in range(8)]
            await asyncio.sleep(max(0.0, until - time.monotonic()))
            live.kill()
            await asyncio.gather(*workers)

    for _ in range(rounds):
        asyncio.run(load(time.monotonic() + rng.uniform(0.05, 1.0)))
        began = time.perf_counter()
        live = start(live.home, docs, **more)
        starts.append(time.perf_counter() - began)
    return {"kills": rounds, "restarted": len(starts), "slowest_start_s": round(max(starts), 2)}, live, acknowledged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=os.environ.get("SMALTI_BENCH_DOCS", "docs"))
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--cores", default="0,1", help="processors of the server")
    options = parser.parse_args()
    docs = Path(options.docs).expanduser().resolve()
    told: dict[str, Any] = {}
    os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    with tempfile.TemporaryDirectory() as folder:
        home, grown = Path(folder) / "home", Path(folder) / "docs"
        size = sum(path.stat().st_size for path in docs.rglob("*.md"))
        replicate(docs, grown, options.chunks / (size / CHARACTERS_A_CHUNK))
        live = start(home, grown)
        stop(live)
        began = time.perf_counter()
        live = start(home, grown)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        try:
            told["chunks"] = live.told["indexes"][0]["chunks"]
            told["warm_start_s"] = round(time.perf_counter() - began, 2)
            told["one_by_one"], answered = one_by_one(live, questions(docs, options.questions))
            told["at_once"], more = asyncio.run(at_once(live, questions(docs, options.streams)))
            answered += more
            if options.kills:
                told["killed"], live, more = killed(live, grown, questions(docs, 500), options.kills)
                answered += more
        finally:
            stop(live)
        kept = journal(home)
        told["acknowledged"] = len(answered)
        told["lost"] = sum(kept.get(each) != 200 for each in answered)
        told["without_completion"] = sum(status is None for status in kept.values())
    print(json.dumps(told))


if __name__ == "__main__":
    main()
