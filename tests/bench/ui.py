"""How quick the pages are: the console's home over a million calls, the chat's first paint, tokens, and 50 chats at once.

`python -m tests.bench.ui [--calls 1000000] [--chats 50] [--only console|chats] [--state FOLDER]`; needs Chromium. Prints JSON
lines. The chats that stream at once are sockets without a browser (`tests.bench.chats`), in a process of their own.
`--state` keeps the million calls for the next time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy

STREAMED = 8
"""Seconds in which the event loop is watched."""
COLUMNS = (
    "databricks_request_id, request_time, endpoint_name, task, requester, status_code, execution_duration_ms, input_tokens, "
    "output_tokens, cost, request, response"
)


def fill(home: Path, calls: int) -> None:
    """A state database of so many calls over 30 days, as an older server left it."""
    from governance.frames import iso
    from governance.tables import create

    home.mkdir(parents=True)
    engine = sqlalchemy.create_engine(f"sqlite:///{home / 'smalti.db'}")
    create(engine)
    chance, now = random.Random(1), time.time_ns()
    names = ("assistant", "chat", "docs")
    people = [f"person-{i}" for i in range(40)]
    with engine.begin() as connection:
        for start in range(0, calls, 20_000):
            rows = [
                (
                    f"{i:032x}", iso(now - chance.randrange(30 * 86_400) * 10**9), chance.choice(names), "agent",
                    chance.choice(people), 200 if i % 50 else 503, chance.lognormvariate(5, 1), 400, 80, 0.001, "{}", "{}",
                )
                for i in range(start, min(calls, start + 20_000))
            ]  # fmt: skip
            marks = ",".join("?" * 12)
            connection.exec_driver_sql(f"INSERT INTO inference_table ({COLUMNS}) VALUES ({marks})", rows)
    engine.dispose()


def console_pages(calls: int, state: Path | None = None) -> list[dict[str, Any]]:
    """Seconds until the console's home shows its numbers, and the journal its rows, from the second opening on."""
    from playwright.sync_api import sync_playwright

    from tests.live import KEY, serving

    with tempfile.TemporaryDirectory() as folder:
        docs = Path(folder, "docs")
        docs.mkdir()
        (docs / "a.md").write_text("# A\n\nOne document.")
        home = state or Path(folder, "home")
        if not home.exists():
            fill(home, calls)
        began = time.perf_counter()
        with serving(home, docs) as live, sync_playwright() as playwright:
            ready = time.perf_counter() - began
            page = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page()
            page.goto(f"{live.url}/login?next=/console")
            page.get_by_label("Access key").fill(KEY)
            page.get_by_role("button", name="Sign in").click()
            page.locator(".figure").first.wait_for(timeout=60_000)
            seconds = []
            for span in ("24 hours", "30 days") * 3:
                began = time.perf_counter()
                page.goto(f"{live.url}/console")
                page.locator(".figure").first.wait_for()
                seconds.append(time.perf_counter() - began)
                page.get_by_role("button", name=span).click()
            told = [{"what": "console home", "calls": calls, **_seconds(seconds), "first_start_s": round(ready, 1)}]
            asked = {
                "journal": "", "journal, 30 days of an endpoint": "?hours=720&endpoint=chat",
                "journal, a caller's failures of 30 days": "?hours=720&caller=person-7&status=5",
                "journal, one request": f"?request={7:032x}", "journal, text nobody wrote, 24 hours": "?hours=24&text=quillon",
            }  # fmt: skip
            for what, query in asked.items():
                seconds = []
                for _ in range(4):
                    began = time.perf_counter()
                    page.goto(f"{live.url}/console/journal{query}")
                    page.locator(".grid, .empty-state").first.wait_for(timeout=60_000)
                    seconds.append(time.perf_counter() - began)
                told.append({"what": what, "calls": calls, **_seconds(seconds[1:])})
            return told


def _seconds(seconds: list[float]) -> dict[str, float]:
    return {"median_s": round(statistics.median(seconds), 3), "worst_s": round(max(seconds), 3)}


def chats(count: int) -> Iterator[dict[str, Any]]:
    """First paint and time from an emitted token to the page, in a browser; the event loop's lag while so many chats stream."""
    from playwright.sync_api import sync_playwright

    from tests.serving.ui.world import World

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, sync_playwright() as playwright:
        world = World(Path(folder))
        world.start()
        asyncio.run_coroutine_threadsafe(world.pages.start(), world.loop).result(60)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        context = browser.new_context()
        context.add_cookies([{"name": "smalti_session", "value": world.admin_key, "url": world.url}])
        page = context.new_page()
        paints = []
        for _ in range(5):
            page.goto(world.url)
            page.get_by_label("Your question").wait_for()
            paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        yield {"what": "first paint", "median_ms": round(statistics.median(paints)), "worst_ms": round(max(paints))}

        emitted: dict[int, float] = {}
        words, original = [0], world.engine.answer
        world.engine.delay = 0.2

        def numbered(question: str) -> Any:
            return (" ".join(f"w{i}" for i in range(25)), [], "generative") if "numbered" in question else original(question)

        world.engine.answer = numbered  # type: ignore[method-assign]
        sleep = asyncio.sleep

        async def noted(seconds: float, *more: Any) -> Any:
            if seconds == world.engine.delay:  # the engine sleeps right after it gave a word
                emitted[words[0]] = time.time() * 1000
                words[0] += 1
            return await sleep(seconds, *more)

        page.evaluate("""() => { window.seen = {}; new MutationObserver(() => {
            for (const m of document.querySelector('article.answer:last-of-type .prose')?.innerText.matchAll(/w(\\d+)/g) ?? [])
                window.seen[m[1]] ??= performance.timeOrigin + performance.now();
        }).observe(document.body, { subtree: true, childList: true, characterData: true }); }""")
        asyncio.sleep = noted  # type: ignore[assignment]
        page.get_by_label("Your question").fill("numbered")
        page.keyboard.press("Enter")
        page.locator("article.answer .tools").wait_for(timeout=60_000)
        asyncio.sleep = sleep
        seen = {int(key): value for key, value in page.evaluate("window.seen").items()}
        late = [seen[i] - emitted[i] for i in range(1, 24) if i in seen and i in emitted]
        yield {"what": "token to page", "median_ms": round(statistics.median(late), 1), "worst_ms": round(max(late), 1)}

        browser.close()

        text = ("Mosaics are set from tiles of **glass** and `stone`. " * 12 + "\n\n") * 40
        world.engine.answer = lambda question: (text, [], "generative")  # type: ignore[method-assign]
        world.engine.delay, lags, cpu, ended = 0.05, [], [], threading.Event()

        async def watch() -> None:
            while not ended.is_set():
                began, used = time.perf_counter(), time.thread_time()
                await sleep(0.01)
                lags.append((time.perf_counter() - began - 0.01) * 1000)
                cpu.append((time.thread_time() - used) * 1000)

        asked = [world.url, world.admin_key, str(count), "tell", str(STREAMED + 2)]
        command = [sys.executable, "-m", "tests.bench.chats", *asked]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
            assert clients.stdout is not None
            clients.stdout.readline()
            time.sleep(1)  # until the last one's answer has begun
            watching = asyncio.run_coroutine_threadsafe(watch(), world.loop)
            time.sleep(STREAMED)
            ended.set()
            watching.result(10)
            yield {"what": "chats that stream", "chats": count, **json.loads(clients.stdout.readline())}
        yield {"what": "event loop lag", "chats": count, **_spread(lags)}
        yield {
            "what": "CPU of the event loop between two ticks 10 ms apart, which bounds its lag",
            "chats": count,
            **_spread(cpu),
        }
        world.server.should_exit = True  # the answers that still come end with the process


def _spread(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    told = {"median_ms": statistics.median(values), "p99_ms": values[int(len(values) * 0.99)], "worst_ms": values[-1]}
    return {key: round(value, 1) for key, value in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--chats", type=int, default=50)
    parser.add_argument("--only", choices=("console", "chats"), help="One of the two halves.")
    parser.add_argument("--state", type=Path, help="Folder of the calls; filled where it is not there.")
    given = parser.parse_args()
    pages = () if given.only == "chats" else console_pages(given.calls, given.state)
    for result in chain(pages, () if given.only == "console" else chats(given.chats)):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
