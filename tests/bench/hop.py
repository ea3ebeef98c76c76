"""What the server adds as an HTTP hop in front of an OpenAI-style upstream on this machine, beside the upstream itself.

    python -m tests.bench.hop [--seconds 10] [--rate 500] [--core N] [--peers FOLDER] [--soak REQUESTS]

Prints one JSON object. The load is open: requests leave at their time whether or not earlier ones are answered, and each is
timed from when it should have left. Then as many as go through 32 connections, divided by the processor time that the hop used.
The hop has key, grant, limit and journal on, and no guardrail; `guarded` adds tier-1 guardrails. `relay` passes bytes on and
reads none of them: what any process in between adds on this machine. `--peers FOLDER` measures MLflow's gateway and Portkey's in
the same run, each installed below the folder, by pip and npm, unless it is there already.
`--core N` keeps every hop to one core. Processor time and memory are those of a hop's processes together; `main_mb` is the memory
of the first alone.
`--soak REQUESTS` does nothing but send so many short requests to the hop and tell its memory ten times on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.bench.timing import percentiles
from tests.live import KEY, ROOT, environment, wait_until

WORDS = "The gateway writes each call twice and then a word comes. " * 34  # about 2 KB
UPSTREAM = """
import asyncio, json, sys, uvicorn
HEAD = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
def chunk(delta, finish=None, **more):
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({**HEAD, "choices": choices, **more}).encode() + b"\\n\\n"
USAGE = {"prompt_tokens": 500, "completion_tokens": 2, "total_tokens": 502}
STREAM = chunk({"role": "assistant", "content": ""}) + chunk({"content": "a word"}) + chunk({}, "stop", usage=USAGE)
STREAM += b"data: [DONE]\\n\\n"
WHOLE = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": USAGE,
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "a word"}, "finish_reason": "stop"}]}).encode()
async def app(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    streamed = b'"stream":true' in body or b'"stream": true' in body
    kind, told = (b"text/event-stream", STREAM) if streamed else (b"application/json", WHOLE)
    headers = [(b"content-type", kind), (b"content-length", str(len(told)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", lifespan="off", access_log=False)
"""
RELAY = """
import asyncio, sys, uvloop
class End(asyncio.Protocol):
    def __init__(self, other=None):
        self.other, self.early = other, []
    def connection_made(self, transport):
        self.transport = transport
        if self.other is None:
            self.dialed = asyncio.ensure_future(self.dial())
        else:
            self.other.other = self
            transport.writelines(self.other.early)
    async def dial(self):
        await asyncio.get_running_loop().create_connection(lambda: End(self), "127.0.0.1", int(sys.argv[2]))
    def data_received(self, data):
        if self.other is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)
    def connection_lost(self, error):
        if self.other is not None:
            self.other.transport.close()
async def main():
    server = await asyncio.get_running_loop().create_server(End, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
uvloop.run(main())
"""


class Connection:
    """One HTTP/1.1 connection that is kept open."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port, self._request = port, request
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        """Send the request and read its whole answer, anew where the server had closed the connection meanwhile. Raises
        `RuntimeError` for any but 200."""
        if self._streams is not None:
            try:
                await self._ask()
                return
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                if getattr(error, "partial", b""):
                    raise
                self.close()
                self._streams = None
        await self._ask()

    async def _ask(self) -> None:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError((head + await reader.read(500)).decode("utf-8", "replace"))
        if b"content-length: " in head:
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            return
        while size := int(await reader.readuntil(b"\r\n"), 16):  # chunked
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()


def request(path: str, model: str | None, *headers: str, words: str = WORDS) -> bytes:
    asked = {"messages": [{"role": "user", "content": words}], "max_tokens": 10}
    body = json.dumps(asked | ({"model": model} if model else {})).encode()
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", f"authorization: Bearer {KEY}", *headers]
    lines.append("content-type: application/json")
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


async def paced(port: int, raw: bytes, rate: int, seconds: float) -> list[float]:
    """Milliseconds of each request from when it was due; `rate` a second."""
    free: asyncio.Queue[Connection] = asyncio.Queue()
    opened = [Connection(port, raw) for _ in range(128)]
    for connection in opened:
        free.put_nowait(connection)
    took: list[float] = []

    async def one(due: float) -> None:
        connection = await free.get()
        try:
            await connection.ask()
        finally:
            free.put_nowait(connection)
        took.append((time.perf_counter() - due) * 1e3)

    begun, running = time.perf_counter(), set()
    for number in range(int(rate * seconds)):
        due = begun + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    for connection in opened:
        connection.close()
    return took[len(took) // 10 :]  # the first tenth warms up


async def saturated(port: int, raw: bytes, seconds: float = float("inf"), most: float = float("inf")) -> int:
    """Requests that 32 connections get answered, for so long or until there are so many."""
    until, count = time.perf_counter() + seconds, 0

    async def one() -> None:
        nonlocal count
        connection = Connection(port, raw)
        while count < most and time.perf_counter() < until:
            count += 1
            await connection.ask()
        connection.close()

    await asyncio.gather(*(one() for _ in range(32)))
    return count


def spent(pid: int) -> tuple[float, float]:
    """Seconds of processor time, and MB of memory, of a process and all that it has started."""
    seconds, held = 0.0, 0
    for process in family(pid):
        with suppress(psutil.Error):
            seconds += sum(process.cpu_times()[:2])
            held += process.memory_info().rss
    return seconds, held / 1e6


def family(pid: int) -> list[psutil.Process]:
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def pin(pid: int, core: int | None) -> None:
    """Keep a process, its threads and what it has started to one core."""
    for process in family(pid) if core is not None else ():
        for thread in process.threads():
            with suppress(OSError):
                os.sched_setaffinity(thread.id, {core})


def measure(port: int, raw: bytes, pid: int, rate: int, seconds: float) -> dict[str, Any]:
    asyncio.run(saturated(port, raw, 1))
    told: dict[str, Any] = percentiles(asyncio.run(paced(port, raw, rate, seconds)))
    before, began = spent(pid)[0], time.perf_counter()
    count = asyncio.run(saturated(port, raw, seconds))
    took, (after, memory) = time.perf_counter() - began, spent(pid)
    told |= {"requests_s": round(count / took), "requests_s_core": round(count / max(after - before, 0.01))}
    return told | {"memory_mb": round(memory), "main_mb": round(psutil.Process(pid).memory_info().rss / 1e6)}


def soak(port: int, pid: int, requests: int) -> list[dict[str, float]]:
    """Memory of the hop after each tenth of the requests, and what they took of the processor."""
    raw, told, sent = request("/v1/chat/completions", "hop", words="What does a call cost?"), [], 0
    for _ in range(10):
        before, began = spent(pid)[0], time.perf_counter()
        count = asyncio.run(saturated(port, raw, most=requests / 10))
        took, sent, (after, memory) = time.perf_counter() - began, sent + count, spent(pid)
        main = psutil.Process(pid).memory_info().rss / 1e6
        step = {"requests": sent, "main_mb": round(main, 1), "memory_mb": round(memory, 1), "requests_s": round(count / took)}
        told.append(step | {"requests_s_core": round(count / max(after - before, 0.01))})
        print(json.dumps(told[-1]), file=sys.stderr, flush=True)
    return told


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=10).status == 200
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def running(command: list[str], port: int, **more: Any) -> Iterator[int]:
    deadline = time.monotonic() + 240
    with tempfile.TemporaryFile() as told:  # a pipe that nobody reads would stop it when it is full
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told, start_new_session=True, **more)
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        told.seek(0)
                        raise RuntimeError(f"{command[0]} did not start: {told.read()[-1500:].decode()}") from None
                    time.sleep(0.1)
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
            with suppress(ProcessLookupError):  # and what it started and left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def settings(upstream: int) -> str:
    model = {"name": "m", "provider": "custom", "base_url": f"http://127.0.0.1:{upstream}/v1"}
    limits = {"rate_limits": [{"key": "user", "calls": 10**9, "tokens": 10**12}]}
    side = {"pii": {"behavior": "MASK"}, "invalid_keywords": ["project nightfall", "codeword"]}
    guarded = {**limits, "guardrails": {"input": side, "output": side}}
    config = {"served_entities": [{"external_model": model}]}
    endpoints = [{"name": name, "config": config, "ai_gateway": gate} for name, gate in (("hop", limits), ("guarded", guarded))]
    return json.dumps({"endpoints": endpoints})


def mlflow_gateway(folder: Path, upstream: int, rate: int, seconds: float, core: int | None) -> dict[str, Any]:
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "mlflow[gateway]>=3,<4"], check=True)
    with tempfile.TemporaryDirectory() as place:
        config = {"openai_api_key": "x", "openai_api_base": f"http://127.0.0.1:{upstream}/v1"}
        model = {"provider": "openai", "name": "m", "config": config}
        endpoint = {"name": "hop", "endpoint_type": "llm/v1/chat", "model": model}
        (file := Path(place) / "gateway.yaml").write_text(json.dumps({"endpoints": [endpoint]}))
        port = free_port()
        command = [str(folder / "bin" / "mlflow"), "gateway", "start", "--config-path", str(file), "--host", "127.0.0.1"]
        raw = request("/gateway/hop/invocations", None)
        with running([*command, "--port", str(port), "--workers", "1"], port, cwd=place) as pid:
            wait_until(lambda: answered(port, raw), 120)  # its port is open before its worker is there
            pin(pid, core)
            return measure(port, raw, pid, rate, seconds)


def portkey_gateway(folder: Path, upstream: int, rate: int, seconds: float, core: int | None) -> dict[str, Any]:
    script = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "@portkey-ai/gateway@1"]
        subprocess.run(npm, check=True)
    port = free_port()
    to = ("x-portkey-provider: openai", f"x-portkey-custom-host: http://127.0.0.1:{upstream}/v1")
    raw = request("/v1/chat/completions", "m", *to)
    trusted = {**os.environ, "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    with running(["node", str(script), f"--port={port}", "--headless"], port, cwd=folder, env=trusted) as pid:
        wait_until(lambda: answered(port, raw), 60)
        pin(pid, core)
        return measure(port, raw, pid, rate, seconds)


def answered(port: int, raw: bytes) -> bool:
    """Whether a hop answers the request."""

    async def once() -> None:
        connection = Connection(port, raw)
        try:
            await asyncio.wait_for(connection.ask(), 10)
        finally:
            connection.close()

    try:
        asyncio.run(once())
    except (OSError, EOFError, RuntimeError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="What the server adds as an HTTP hop.")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--peers", type=Path, help="folder in which MLflow's gateway and Portkey's are, or will be, installed")
    parser.add_argument("--soak", type=int, metavar="REQUESTS", help="send so many, and tell the memory on the way")
    parser.add_argument("--core", type=int, help="the core that each hop is kept to")
    asked = parser.parse_args()
    rate, seconds = asked.rate, asked.seconds
    told: dict[str, Any] = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "rate": rate}
    upstream = free_port()
    with tempfile.TemporaryDirectory() as place, running([sys.executable, "-c", UPSTREAM, str(upstream)], upstream) as pid:
        if not asked.soak:
            told["direct"] = measure(upstream, request("/v1/chat/completions", "m"), pid, rate, seconds)
            port = free_port()
            with running([sys.executable, "-c", RELAY, str(port), str(upstream)], port) as relay:
                pin(relay, asked.core)
                told["relay"] = measure(port, request("/v1/chat/completions", "m"), relay, rate, seconds)
        home = Path(place) / "home"
        home.mkdir()
        config = Path(place) / "smalti.yaml"
        config.write_text(settings(upstream))
        port = free_port()
        command = [sys.executable, "-m", "app", "--config", str(config), "serve", "--port", str(port)]
        with running(command, port, env=environment(home, PYTHONPATH=str(ROOT)), cwd=place) as server:  # where no docs/ lies
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/ready"), 180)
            told["memory_at_start_mb"] = round(spent(server)[1])
            pin(server, asked.core)
            if asked.soak:
                told["soak"] = soak(port, server, asked.soak)
            for name in () if asked.soak else ("hop", "guarded"):
                told[name] = measure(port, request("/v1/chat/completions", name), server, rate, seconds)
        for name, gateway in {"mlflow": mlflow_gateway, "portkey": portkey_gateway}.items() if asked.peers else ():
            try:
                told[name] = gateway(asked.peers.resolve() / name, upstream, rate, seconds, asked.core)
            except (AssertionError, RuntimeError, OSError, EOFError, subprocess.CalledProcessError) as error:
                told[name] = str(error)[-500:]
    for name in ("relay", "hop", "guarded", "mlflow", "portkey"):
        if isinstance(told.get(name), dict):
            told[name]["added_ms"] = {at: round(told[name][f"{at}_ms"] - told["direct"][f"{at}_ms"], 2) for at in ("p50", "p99")}
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
