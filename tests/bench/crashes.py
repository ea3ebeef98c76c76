"""Does a gateway that is killed again and again keep a row of every call, once?

`python -m tests.bench.crashes [--kills 1000] [--calls 1000] [--workers 2] [--fsync] [--seed 0] [--home FOLDER]`

Worker processes share one state folder and answer calls by `Gateway.call` with key, grant, limits, tier-1 guardrails and journal,
sixteen at a time: streams, whole answers, failures of the model and refusals. A worker says `D` and the id of a call when it
reaches the model and `A`, the id and the status once the caller has the end of its answer, each by one write into a pipe. Each is
killed with SIGKILL after about `--calls` acknowledged calls, wherever it then is: between two frames, in the middle of a write,
of a transaction, of taking in what another one left. One in ten leaves a torn frame at the end of its segment, as a machine does
that loses its power.

Prints one JSON object: `kills`, `acknowledged`, `dispatched`, `lost` (acknowledged calls without their row, or with another
status), `without_intent` (calls that reached the model and have no row), `twice` (rows beyond one a call), `counted_wrong` (by
how much the sums by hour differ from the rows), `torn` and `slowest_start_s`, from the fork to the first answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import select
import signal
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from governance.call import Call, CallError, Event, unavailable
from governance.frames import encode
from governance.gateway import Gateway
from governance.grants import Grants
from governance.identity import Identity
from governance.journal import Journal
from governance.limits import Limits
from governance.policies import Policies
from serving.state import open_database
from tests.bench.gateway import ANSWER

AT_ONCE = 16
DONE = {"response.completed": 200, "response.failed": 503}


def prepare(home: Path) -> str:
    """The state that the workers find: a key, a grant, limits and guardrails."""
    database = open_database(f"sqlite:///{home / 'smalti.db'}")
    identity, grants, policies = Identity(database, home / "pepper"), Grants(database), Policies(database)
    side = {"pii": {"behavior": "MASK"}, "invalid_keywords": ["project nightfall"]}
    limits = [{"calls": 10**9, "tokens": 10**12}, {"key": "user", "calls": 10**9, "tokens": 10**12}]
    policies.set("assistant", {"rate_limits": limits, "guardrails": {"input": side, "output": side}})
    _, secret = identity.create_key("alice")
    grants.grant("user:alice", "endpoint:assistant", "CAN_QUERY")
    database.dispose()
    return secret


async def work(home: Path, secret: str, told: int, *, fsync: bool) -> None:
    """Answer calls for ever."""
    database = open_database(f"sqlite:///{home / 'smalti.db'}")
    journal = Journal(database, home / "journal", interval=0.2, segment_bytes=1 << 20, fsync=fsync)
    gateway = Gateway(Identity(database, home / "pepper"), Grants(database), Limits(Policies(database)), journal)

    async def engine(call: Call) -> AsyncIterator[Event]:
        os.write(told, f"D {call.request_id}\n".encode())
        await asyncio.sleep(0)
        if call.payload["kind"] == "fails":
            raise unavailable("The model is not there.")
        for _ in range(3):
            yield Event("response.output_text.delta", {"delta": "a word to alice@example.com "})
            await asyncio.sleep(0)
        if call.payload["kind"] == "breaks":
            raise unavailable("The model stopped.")
        yield Event("response.completed", {"response": ANSWER})

    async def ask(number: int) -> None:
        while True:
            number += 1
            kind = "fails" if number % 23 == 0 else "breaks" if number % 29 == 0 else "answers"
            text = "project nightfall" if number % 31 == 0 else f"What does call {number} of alice@example.com cost?"
            payload = {"input": [{"role": "user", "content": text}], "kind": kind, "max_output_tokens": 100}
            call = Call("assistant", "agent", payload, credential=secret, stream=number % 2 == 0)
            status = 0
            try:
                async for event in gateway.call(call, engine):
                    status = DONE.get(event.type, 0)
            except CallError as error:
                status = error.status
            os.write(told, f"A {call.request_id} {status}\n".encode())

    await asyncio.gather(*(ask(place * 7) for place in range(AT_ONCE)))


class Worker:
    """A process that answers until it is killed."""

    def __init__(self, home: Path, secret: str, calls: int, *, fsync: bool) -> None:
        self.calls, self.acknowledged, self.rest, self.began, self.start_s = calls, 0, b"", time.perf_counter(), 0.0
        self.pipe, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.pipe)
                asyncio.run(work(home, secret, told, fsync=fsync))
            finally:
                os._exit(1)
        os.close(told)

    def read(self) -> tuple[list[str], bool]:
        """Whole lines that it wrote, and whether it ended."""
        data = os.read(self.pipe, 1 << 16)
        *lines, self.rest = (self.rest + data).split(b"\n")
        told = [line.decode() for line in lines]
        self.acknowledged += sum(line[0] == "A" for line in told)
        if self.acknowledged and not self.start_s:
            self.start_s = time.perf_counter() - self.began
        return told, not data

    def kill(self) -> list[str]:
        """Kill it where it is; gives what it had still written."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        told: list[str] = []
        ended = False
        while not ended:
            more, ended = self.read()
            told += more
        os.close(self.pipe)
        return told


def tear(home: Path, pid: int, draw: random.Random) -> bool:
    """Append the beginning of a frame to the segment that a worker left, where nobody has taken it in yet."""
    frame = encode({"databricks_request_id": "torn", "request": "x" * draw.randrange(1, 4_000)})
    for path in (home / "journal").glob(f"*-{pid}-*.seg"):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            continue
        with os.fdopen(descriptor, "wb") as segment:
            segment.write(frame[: draw.randrange(1, len(frame))])
        return True
    return False


def verdict(home: Path, acknowledged: dict[str, int], dispatched: set[str]) -> dict[str, int]:
    """What the tables say of the calls, once everything that was written has been taken in."""
    database = open_database(f"sqlite:///{home / 'smalti.db'}")
    with Journal(database, home / "journal", interval=None) as journal:
        journal.ingest()
    database.dispose()
    connection = sqlite3.connect(home / "smalti.db")
    found: dict[str, int | None] = {}
    twice = ended = 0
    for name, status in connection.execute("SELECT databricks_request_id, status_code FROM inference_table"):
        twice += name in found
        ended += status is not None
        found[name] = status
    counted = connection.execute("SELECT sum(requests) FROM usage_hourly WHERE requester = ''").fetchone()[0]
    connection.close()
    return {
        "rows": len(found),
        "lost": sum(found.get(name) != status for name, status in acknowledged.items()),
        "without_intent": sum(name not in found for name in dispatched),
        "twice": twice,
        "counted_wrong": abs(ended - counted),
        "left_segments": len(list((home / "journal").glob("*.seg"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--calls", type=int, default=1_000, help="acknowledged calls of each worker, on average")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fsync", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help="a folder that stays; a temporary one by default")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = options.home or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        secret = prepare(home)
        acknowledged: dict[str, int] = {}
        dispatched: set[str] = set()
        workers: list[Worker] = []
        kills = torn = 0
        slowest, began = 0.0, time.monotonic()

        def note(lines: list[str]) -> None:
            for line in lines:
                kind, name, *status = line.split()
                if kind == "A":
                    acknowledged[name] = int(status[0])
                else:
                    dispatched.add(name)

        while kills < options.kills:
            while len(workers) < options.workers:
                calls = draw.randint(options.calls // 2, options.calls * 3 // 2)
                workers.append(Worker(home, secret, calls, fsync=options.fsync))
            ready, _, _ = select.select([worker.pipe for worker in workers], [], [], 60)
            assert ready, "no worker says anything"
            for worker in [worker for worker in workers if worker.pipe in ready]:
                lines, ended = worker.read()
                note(lines)
                assert not ended, "a worker ended by itself"
                if worker.acknowledged >= worker.calls:
                    note(worker.kill())
                    kills += 1
                    slowest = max(slowest, worker.start_s)
                    workers.remove(worker)
                    if draw.random() < 0.1:
                        torn += tear(home, worker.pid, draw)
        for worker in workers:
            note(worker.kill())
            kills += 1
        told: dict[str, Any] = {"kills": kills, "acknowledged": len(acknowledged), "dispatched": len(dispatched)}
        told |= {"seconds": round(time.monotonic() - began), "torn": torn, "slowest_start_s": round(slowest, 2)}
        print(json.dumps(told | verdict(home, acknowledged, dispatched)))


if __name__ == "__main__":
    main()
