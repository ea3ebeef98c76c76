"""Runs in the background: official clients begin, poll, follow, resume and cancel them, and nobody else sees them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError

from agents.log import RunLog
from governance.call import Call, Caller, Event
from serving.endpoint import Endpoint
from serving.engines.answer import Answer
from serving.runs import Runs
from tests.live import wait_until
from tests.serving.upstream import House, house, serving

ADMIN = Caller("admin")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[House]:
    with house(tmp_path) as opened:
        yield opened


@pytest.fixture
def client(made: House) -> Iterator[openai.OpenAI]:
    with serving(made.app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=made.admin, max_retries=0) as opened:
        yield opened


def test_begun_polled_and_done(client: openai.OpenAI, made: House) -> None:
    begun = client.responses.create(model="agent", input="one two three", background=True)
    assert begun.background is True
    assert begun.status in ("queued", "in_progress", "completed")
    wait_until(lambda: client.responses.retrieve(begun.id).status == "completed")
    assert client.responses.retrieve(begun.id).output_text == "one two three"
    row = next(made.journal.rows(request_id=begun.id.removeprefix("resp_")))
    assert row["status_code"] == 200, "a run in the background is journalled like any other call"
    follow = client.responses.create(model="agent", input="again", previous_response_id=begun.id)
    assert follow.output_text == "again"


def test_a_response_that_was_deleted_is_nowhere_but_in_the_journal(client: openai.OpenAI, made: House) -> None:
    said = client.responses.create(model="agent", input="one two")
    other = openai.OpenAI(base_url=client.base_url, api_key=made.key("ann", "endpoint:agent"), max_retries=0)
    with other, pytest.raises(openai.NotFoundError):
        other.responses.delete(said.id)
    client.responses.delete(said.id)
    for gone in (
        lambda: client.responses.retrieve(said.id),
        lambda: client.responses.input_items.list(said.id),
        lambda: client.responses.create(model="agent", input="again", previous_response_id=said.id),
        lambda: client.responses.delete(said.id),
    ):
        with pytest.raises(openai.NotFoundError):
            gone()
    assert next(made.journal.rows(request_id=said.id.removeprefix("resp_")))["status_code"] == 200
    endless = client.responses.create(model="agent", input="!endless", background=True)
    client.responses.delete(endless.id)  # it is stopped
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(endless.id)
    wait_until(lambda: made.gateway.in_flight == 0)


def test_input_tokens_are_told_before_anything_is_answered(client: openai.OpenAI, made: House) -> None:
    short = client.responses.input_tokens.count(model="agent", input="hello")
    long = client.responses.input_tokens.count(model="agent", input="hello " * 100)
    assert short.object == "response.input_tokens"
    assert 0 < short.input_tokens < 40 < 150 < long.input_tokens < 250
    assert made.ran == []
    with pytest.raises(openai.NotFoundError):
        client.responses.input_tokens.count(model="nobody", input="hello")
    with pytest.raises(openai.BadRequestError):
        client.responses.input_tokens.count(model="agent")


def test_a_dropped_stream_is_gone_on_with(client: openai.OpenAI) -> None:
    words = " ".join(f"w{i}" for i in range(30))
    whole: list[Any] = []
    response_id = ""
    with client.responses.create(model="agent", input=words, background=True, stream=True) as stream:
        for event in stream:
            whole.append(event)
            if event.type == "response.created":
                response_id = event.response.id
            if len(whole) == 7:
                break  # the connection is closed here
    rest = list(client.responses.retrieve(response_id, stream=True, starting_after=whole[-1].sequence_number))
    events = whole + rest
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == words
    assert [event.type for event in events if event.type == "response.completed"] == [events[-1].type]
    for position in range(len(events)):
        again = list(client.responses.retrieve(response_id, stream=True, starting_after=position))
        assert [event.sequence_number for event in again] == list(range(position + 1, len(events)))


def test_cancelled_and_its_end_is_told(client: openai.OpenAI, made: House) -> None:
    with client.responses.create(model="agent", input="!endless", background=True, stream=True) as stream:
        events = []
        for event in stream:
            events.append(event)
            if len(events) == 8:
                before = time.monotonic()
                cancelled = client.responses.cancel(events[0].response.id)
                print(f"stopped in {(time.monotonic() - before) * 1000:.0f} ms")
    assert cancelled.status == "cancelled"
    assert cancelled.output_text.startswith("!endless…")
    assert [e.response.status for e in events if e.type in ("response.incomplete", "response.completed")] == ["cancelled"]
    assert events[-1].type == "response.incomplete"
    assert next(made.journal.rows(request_id=cancelled.id.removeprefix("resp_")))["status_code"] == 499
    assert client.responses.cancel(cancelled.id).status == "cancelled", "twice is no error"
    done = client.responses.create(model="agent", input="x", background=True)
    wait_until(lambda: client.responses.retrieve(done.id).status == "completed")
    assert client.responses.cancel(done.id).status == "completed"


def test_another_callers_run_is_not_there(client: openai.OpenAI, made: House) -> None:
    begun = client.responses.create(model="agent", input="secret plans", background=True)
    stranger = client.with_options(api_key=made.key("eve", "endpoint:agent"))
    for ask in (
        lambda: stranger.responses.retrieve(begun.id),
        lambda: list(stranger.responses.retrieve(begun.id, stream=True)),
        lambda: stranger.responses.cancel(begun.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("text", "status"), [("!refuse", 429), ("x", 403)])
def test_a_refusal_has_its_own_status(client: openai.OpenAI, made: House, text: str, status: int) -> None:
    key = made.admin if status == 429 else made.key("bob")
    with pytest.raises(openai.APIStatusError) as caught:
        client.with_options(api_key=key).responses.create(model="agent", input=text, background=True)
    assert caught.value.status_code == status


def test_a_run_that_breaks_says_so(client: openai.OpenAI) -> None:
    for text, says in (("!break", "It broke"), ("!crash", "failed inside")):
        events = list(client.responses.create(model="agent", input=text, background=True, stream=True))
        assert events[-1].type == "response.failed"
        assert says in events[-1].response.error.message
        assert "secret detail" not in events[-1].response.error.message


@pytest.mark.parametrize("query", ["stream=true&starting_after=x", "stream=true&starting_after=-2"])
def test_a_wrong_place_to_go_on_from(client: openai.OpenAI, query: str) -> None:
    begun = client.responses.create(model="agent", input="x", background=True)
    address = f"{client.base_url}responses/{begun.id}?{query}"
    answer = httpx.get(address, headers={"Authorization": f"Bearer {client.api_key}"}, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "starting_after")


class Script:
    """A policy that lets everything pass, and an agent that says `n` words when it is told to."""

    def __init__(self, words: int) -> None:
        self.words = words

    async def run(self, call: Call) -> AsyncIterator[Event]:
        answer = Answer(call)
        for event in answer.start():
            yield event
        for number in range(self.words):
            for event in answer.write(f"w{number} "):
                yield event
            await asyncio.sleep(0)
        for event in answer.finish():
            yield event

    def call(self, call: Call, engine: Any) -> AsyncIterator[Event]:
        return engine(call)


def service(folder: Path, words: int) -> tuple[Any, Runs]:
    from serving.dispatch import Dispatcher
    from serving.endpoint import Endpoints

    script = Script(words)
    engine = create_engine(f"sqlite:///{folder}/log.db")
    endpoints = Endpoints([Endpoint("agent", "agent/v1/responses", script.run)])
    return engine, Runs(Dispatcher(script, endpoints), RunLog(engine))  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("killed_after", range(1, 12))
async def test_killed_at_any_event_no_reader_loses_or_repeats_one(tmp_path: Path, killed_after: int) -> None:
    """The process's death is a database that is closed and a new service on it: what was told must be there."""
    engine, runs = service(tmp_path, 6)
    call = Call("agent", "agent", {"background": True}, request_id="r1", stream=True)
    begun = await runs.start(call, ADMIN)
    assert begun["status"] in ("queued", "in_progress", "completed")
    seen: list[tuple[int, Event]] = []
    follow = runs.follow("r1", ADMIN)
    async for item in follow:
        seen.append(item)
        if len(seen) == killed_after:
            break
    await follow.aclose()
    live = runs._live.get("r1")
    if live is not None and live.task is not None:  # nothing more of it reaches the database
        runs.log._insert = lambda rows, ends: time.sleep(0)  # type: ignore[method-assign]
        await asyncio.wait([live.task])
    engine.dispose()
    engine, revived = service(tmp_path, 0)
    await revived.recover()
    rest = [item async for item in revived.follow("r1", ADMIN, seen[-1][0])]
    numbers = [number for number, _ in (*seen, *rest)]
    assert numbers == list(range(len(numbers)))
    kinds = [event.type for _, event in (*seen, *rest)]
    assert sum(event.terminal for _, event in (*seen, *rest)) == 1
    assert kinds[-1] in ("response.completed", "response.failed")
    found = await revived.get("r1", ADMIN)
    assert found is not None
    text = "".join(event.data["delta"] for _, event in (*seen, *rest) if event.type == "response.output_text.delta")
    assert json.loads(json.dumps(found))["output"][0]["content"][0]["text"] == text
    engine.dispose()


@pytest.mark.anyio
async def test_a_start_leaves_the_runs_of_other_servers_alone(tmp_path: Path) -> None:
    engine, runs = service(tmp_path, 6)
    for host in ("one", "two"):
        await asyncio.to_thread(RunLog(engine, host).begin, host, owner="user:admin", agent="agent", thread_id=None)
    runs.log = RunLog(engine, "two")
    await runs.recover()
    found = {each: RunLog(engine).find(each, "user:admin") for each in ("one", "two")}
    assert {name: record and record.status for name, record in found.items()} == {"one": "in_progress", "two": "failed"}
    engine.dispose()


async def followed(runs: Runs) -> list[Event]:
    return [event async for _, event in runs.follow("r1", ADMIN)]


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["left", "stopped", "closed"])
async def test_whatever_happens_while_a_run_is_noted_it_is_ended(tmp_path: Path, how: str) -> None:
    engine, runs = service(tmp_path, 6)
    noting, go_on, begin = threading.Event(), threading.Event(), runs.log.begin

    def slowly(*given: Any, **named: Any) -> Any:
        record = begin(*given, **named)
        noting.set()
        go_on.wait(60)
        return record

    runs.log.begin = slowly  # type: ignore[method-assign]
    starting = asyncio.create_task(runs.start(Call("agent", "agent", {}, request_id="r1", stream=True), ADMIN))
    assert await asyncio.to_thread(noting.wait, 60)
    if how == "left":
        starting.cancel()
        await asyncio.wait([starting])
    elif how == "stopped":
        runs.stop("r1")
    closing = asyncio.create_task(runs.close()) if how == "closed" else None
    await asyncio.sleep(0)
    go_on.set()
    events = await followed(runs)
    assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]
    await asyncio.wait([starting, *([closing] if closing else [])])
    status = {"left": "completed", "stopped": "cancelled", "closed": "failed"}[how]
    assert events[-1].data["response"]["status"] == status
    assert (await runs.get("r1", ADMIN) or {})["status"] == status
    assert runs.log.unfinished() == []
    engine.dispose()


@pytest.mark.anyio
async def test_a_run_is_heard_once_its_agent_is_at_work(tmp_path: Path) -> None:
    engine, runs = service(tmp_path, 6)
    go_on, append = asyncio.Event(), runs.log.append

    async def slowly(*given: Any, **named: Any) -> None:
        await go_on.wait()
        await append(*given, **named)

    runs.log.append = slowly  # type: ignore[method-assign]
    starting = asyncio.create_task(runs.start(Call("agent", "agent", {}, request_id="r1", stream=True), ADMIN))
    while "r1" not in runs._live:  # noqa: ASYNC110
        await asyncio.sleep(0)
    hearing = asyncio.create_task(runs.heard("r1"))
    await asyncio.sleep(0.05)
    assert not hearing.done()
    go_on.set()
    await hearing
    await starting
    await runs.wait("r1")
    await runs.heard("r1")
    engine.dispose()


@pytest.mark.anyio
async def test_a_run_that_cannot_be_noted_is_told_to_whom_began_it(tmp_path: Path) -> None:
    engine, runs = service(tmp_path, 6)
    call = Call("agent", "agent", {}, request_id="r1", stream=True)
    await runs.start(call, ADMIN)
    await runs.wait("r1")
    with pytest.raises(IntegrityError):
        await runs.start(call, ADMIN)
    await runs.close()
    engine.dispose()


@pytest.mark.anyio
@pytest.mark.parametrize("closes", [False, True])
async def test_who_cancels_what_has_just_ended_takes_no_end_away(tmp_path: Path, closes: bool) -> None:
    engine, runs = service(tmp_path, 3)
    ending, go_on, append = asyncio.Event(), asyncio.Event(), runs.log.append

    async def slowly(run_id: str, seq: int, entries: Any, *, status: str | None = None) -> None:
        if status:
            ending.set()
            await go_on.wait()
        await append(run_id, seq, entries, status=status)

    runs.log.append = slowly  # type: ignore[method-assign]
    starting = asyncio.create_task(runs.start(Call("agent", "agent", {}, request_id="r1", stream=True), ADMIN))
    await ending.wait()
    while not runs._live["r1"].ended:  # noqa: ASYNC110
        await asyncio.sleep(0)
    stopping = asyncio.create_task(runs.close() if closes else runs.cancel("r1", ADMIN))
    following = asyncio.create_task(followed(runs))
    await asyncio.sleep(0.05)
    go_on.set()
    assert [event.type for event in await following if event.terminal] == ["response.completed"]
    await asyncio.wait([starting, stopping])
    assert (await runs.get("r1", ADMIN) or {})["status"] == "completed"
    engine.dispose()


@pytest.mark.anyio
async def test_readers_at_their_own_pace(tmp_path: Path) -> None:
    engine, runs = service(tmp_path, 200)
    await runs.start(Call("agent", "agent", {"background": True}, request_id="r1", stream=True), ADMIN)

    async def read(pause: float) -> list[int]:
        numbers = []
        async for number, _ in runs.follow("r1", ADMIN):
            numbers.append(number)
            await asyncio.sleep(pause)
        return numbers

    quick, slow = await asyncio.gather(read(0), read(0.0005))
    assert quick == slow == list(range(len(quick)))
    assert await runs.get("r1", Caller("eve")) is None
    assert runs.log.forget(time.time() + 1) == 1
    assert await runs.get("r1", ADMIN) is None
    engine.dispose()
