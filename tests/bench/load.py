"""Load from a process of its own: so many clients that ask one after the other, or requests that come at a given rate.

    python tests/bench/load.py URL --body FILE [--clients 16] [--seconds 5] [--rate R] [--header "name: value"]

Prints one JSON object. A latency of a given rate counts from the moment at which the request was due, so that a server that
falls behind shows it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import uvloop


class Connection(asyncio.Protocol):
    """One kept-alive HTTP connection with one request on its way."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[int] | None = None
        self._parser: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    async def ask(self, raw: bytes) -> int:
        """The status of the answer; 0 where the connection was lost."""
        self._answer = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(raw)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)


class Load:
    """Parameters: where to ask, the request as it goes over the wire, and what was seen so far."""

    def __init__(self, url: str, body: bytes, headers: list[str]) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), parts.port or 80
        lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", "content-type: application/json", *headers]
        self._raw = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body
        self.took: list[float] = []
        self.statuses: dict[int, int] = {}

    async def connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        return connection

    async def one(self, connection: Connection, due: float | None = None) -> Connection:
        began = time.perf_counter() if due is None else due
        status = await connection.ask(self._raw)
        self.took.append(time.perf_counter() - began)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        return connection if status else await self.connect()

    async def closed(self, clients: int, seconds: float) -> None:
        """Clients that each wait for an answer before they ask again."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            connection = await self.connect()
            while time.perf_counter() < end:
                connection = await self.one(connection)

        await asyncio.gather(*(client() for _ in range(clients)))

    async def opened(self, rate: float, seconds: float) -> None:
        """Requests that come at a rate, whether or not those before them are answered."""
        free: list[Connection] = []
        began = time.perf_counter()

        async def request(due: float) -> None:
            connection = free.pop() if free else await self.connect()
            free.append(await self.one(connection, due))

        tasks = []
        for number in range(int(rate * seconds)):
            due = began + number / rate
            if (rest := due - time.perf_counter()) > 0:
                await asyncio.sleep(rest)
            tasks.append(asyncio.create_task(request(due)))
        await asyncio.gather(*tasks)


def summary(load: Load, seconds: float) -> dict[str, Any]:
    cuts = statistics.quantiles(load.took, n=100) if len(load.took) > 1 else load.took * 99
    failed = {status: count for status, count in load.statuses.items() if status != 200}
    told = {"requests_per_s": round(len(load.took) / seconds, 1), "p50_ms": round(cuts[49] * 1e3, 2)}
    return told | {"p99_ms": round(cuts[98] * 1e3, 2), **({"failed": failed} if failed else {})}


async def run(given: argparse.Namespace) -> dict[str, Any]:
    body = given.body.read_bytes()
    load = Load(given.url, body, given.header)
    began = time.perf_counter()
    if given.rate:
        await load.opened(given.rate, given.seconds)
    else:
        await load.closed(given.clients, given.seconds)
    return summary(load, time.perf_counter() - began)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Load on one URL.")
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rate", type=float, default=0)
    parser.add_argument("--header", action="append", default=[])
    print(json.dumps(uvloop.run(run(parser.parse_args()))))
