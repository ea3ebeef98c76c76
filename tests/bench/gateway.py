"""What `Gateway.call` adds to a bare engine: key, grant, limits and journal, in this process; then with tier-1 guardrails too.

`python tests/bench/gateway.py [--calls N]` prints JSON. Times are microseconds a call at a request body of 2 KB and of 22 KB,
and a streamed chunk; `guarded_` ones with PII masked and keywords refused on input and output. Bare and governed calls take
turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from governance.call import Call, Event
from governance.gateway import Gateway
from governance.grants import Grants
from governance.identity import Identity
from governance.journal import Journal
from governance.limits import Limits
from governance.policies import Policies
from serving.state import open_database

ANSWER = {
    "id": "resp_x",
    "object": "response",
    "status": "completed",
    "model": "bench",
    "output": [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "word " * 100, "annotations": []}]}
    ],
    "usage": {"input_tokens": 500, "output_tokens": 100, "total_tokens": 600},
}


async def engine(call: Call) -> AsyncIterator[Event]:
    for _ in range(call.payload["chunks"]):
        yield Event("response.output_text.delta", {"delta": "word "})
    yield Event("response.completed", {"response": ANSWER})


async def timed(events: AsyncIterator[Event]) -> float:
    start = time.perf_counter()
    async for _ in events:
        pass
    return (time.perf_counter() - start) * 1e6


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(len(values) * q), len(values) - 1)]


async def measure(gateway: Gateway, secret: str, size: int, chunks: int, calls: int) -> tuple[list[float], list[float]]:
    bare, governed = [], []
    prose = "The gateway writes each call twice, in 2024 as before, and then a word of 12 letters comes. " * (size // 80)
    payload = {"input": [{"role": "user", "content": prose[: size - 100]}], "chunks": chunks, "max_output_tokens": 100}
    for turn in range(calls + calls // 10):
        call = Call("assistant", "agent", payload, credential=secret, stream=True)
        first, second = await timed(engine(call)), await timed(gateway.call(call, engine))
        if turn >= calls // 10:  # the first tenth warms up
            bare.append(first)
            governed.append(second)
    return bare, governed


async def main(calls: int) -> dict[str, Any]:
    result: dict[str, Any] = {"calls": calls, "cores": os.cpu_count(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{folder}/smalti.db")
        identity, grants = Identity(database, Path(folder) / "pepper"), Grants(database)
        policies = Policies(database)
        policies.set(
            "assistant", {"rate_limits": [{"calls": 10**9, "tokens": 10**12}, {"key": "user", "calls": 10**9, "tokens": 10**12}]}
        )
        _, secret = identity.create_key("alice", groups=["people"])
        grants.grant("group:people", "endpoint:assistant", "CAN_QUERY")
        with Journal(database, Path(folder) / "journal") as journal:
            gateway = Gateway(identity, grants, Limits(policies), journal)
            for size in (2_048, 22_528):
                bare, governed = await measure(gateway, secret, size, 0, calls)
                result[f"added_us_{size // 1024}kb"] = {
                    name: round(quantile(governed, q) - quantile(bare, q), 1) for name, q in (("p50", 0.5), ("p99", 0.99))
                }
            chunks = 200
            bare, governed = await measure(gateway, secret, 2_048, chunks, max(calls // 20, 20))
            added = quantile(governed, 0.5) - quantile(bare, 0.5) - result["added_us_2kb"]["p50"]
            result["added_us_chunk"] = {"p50": round(added / chunks, 2)}
            side = {"pii": {"behavior": "MASK"}, "invalid_keywords": ["project nightfall", "codeword"]}
            limits = policies.get("assistant")
            assert limits is not None
            policies.set("assistant", {**limits.as_dict(), "guardrails": {"input": side, "output": side}})
            for size in (2_048, 22_528):
                bare, governed = await measure(gateway, secret, size, 0, calls)
                result[f"guarded_added_us_{size // 1024}kb"] = {
                    name: round(quantile(governed, q) - quantile(bare, q), 1) for name, q in (("p50", 0.5), ("p99", 0.99))
                }
            bare, governed = await measure(gateway, secret, 2_048, chunks, max(calls // 20, 20))
            added = quantile(governed, 0.5) - quantile(bare, 0.5) - result["guarded_added_us_2kb"]["p50"]
            result["guarded_added_us_chunk"] = {"p50": round(added / chunks, 2)}
            result["rows"] = sum(1 for _ in journal.rows())
        database.dispose()
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What Gateway.call adds to a bare engine.")
    parser.add_argument("--calls", type=int, default=4_000)
    print(json.dumps(asyncio.run(main(parser.parse_args().calls)), indent=2))
