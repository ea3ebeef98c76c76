from __future__ import annotations

import base64
import contextlib
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from serving.endpoint import Endpoint
from serving.engines.external import ExternalChat, Timeouts
from serving.engines.upstream import Upstream as Address
from tests.live import wait_until
from tests.serving.upstream import KEY, TEXT, House, Upstream, house, serving


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("state")) as built:
        yield built


@pytest.fixture(scope="module")
def url(made: House) -> Iterator[str]:
    with serving(made.app) as base:
        yield base


@pytest.fixture
def client(made: House, url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=made.admin, max_retries=0) as opened:
        yield opened


@pytest.fixture
def http(made: House, url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {made.admin}"}, trust_env=False) as opened:
        yield opened


ASK: Any = [{"role": "user", "content": "hello there"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_chat_gives_text_citations_usage_and_request_id(client: openai.OpenAI, made: House) -> None:
    answer = client.chat.completions.with_raw_response.create(model="echo", messages=ASK)
    body: Any = answer.parse()
    message = body.choices[0].message
    assert message.content == "hello there"
    assert message.annotations[0].url_citation.title == "T"
    assert (body.usage.prompt_tokens, body.usage.completion_tokens, body.usage.total_tokens) == (5, 3, 8)
    assert body.choices[0].finish_reason == "stop"
    assert body.custom_outputs["mode"] == "echo"
    identifier = answer.headers["x-request-id"]
    assert body.id == f"chatcmpl-{identifier}"
    assert answer.headers["served-model-name"] == "echo-1"
    assert answer.headers["x-databricks-org-id"]
    (row,) = made.rows(request_id=identifier)
    assert (row["status_code"], row["endpoint_name"], row["total_tokens"]) == (200, "echo", 8)


def test_chat_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="echo", messages=ASK, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "hello there"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8
    assert all(chunk.usage is None for chunk in chunks[:-1])
    quoted = [chunk for chunk in chunks if chunk.choices and getattr(chunk.choices[0].delta, "annotations", None)]
    assert len(quoted) == 1
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_databricks_stream_carries_usage_on_a_chunk_with_choices(made: House, url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/serving-endpoints", api_key=made.admin) as client:
        chunks = list(client.chat.completions.create(model="echo", messages=ASK, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 8


def test_tools_both_ways(client: openai.OpenAI) -> None:
    call: Any = client.chat.completions.create(model="echo", messages=ASK, tools=[TOOL]).choices[0]
    assert call.finish_reason == "tool_calls"
    assert call.message.content is None
    assert json.loads(call.message.tool_calls[0].function.arguments) == {"city": "Rome"}
    with client.chat.completions.stream(model="echo", messages=ASK, tools=[TOOL]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.arguments == '{"city":"Rome"}'


def test_responses_events_are_openais_in_order(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="agent", input="a b", stream=True))
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event.model_dump(), strict=False)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.annotation.added", "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    last: Any = events[-1]
    assert last.response.output_text == "a b"
    assert last.response.usage.total_tokens == 8


def test_responses_tool_call_stream(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": TOOL["function"]["parameters"], "strict": False}
    with client.responses.stream(model="echo", input="weather?", tools=[tool]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.function_call_arguments.delta") == 2
    assert kinds[-1] == "response.completed"
    item: Any = final.output[0]
    assert (item.name, item.arguments, item.call_id) == ("weather", '{"city":"Rome"}', "call_1")


def test_responses_continue_a_previous_one(client: openai.OpenAI, made: House) -> None:
    first = client.responses.create(model="echo", input="one")
    assert client.responses.retrieve(first.id).output_text == "one"
    client.responses.create(model="echo", input="two", previous_response_id=first.id)
    said = [(item["role"], item["content"]) for item in made.ran[-1].payload["input"]]
    assert said == [("user", "one"), ("assistant", "one"), ("user", "two")]
    unstored = client.responses.create(model="echo", input="one", store=False)
    with pytest.raises(openai.NotFoundError, match="no stored response"):
        client.responses.create(model="echo", input="two", previous_response_id=unstored.id)
    other = made.key("mallory", "endpoint:echo")
    with openai.OpenAI(base_url=str(client.base_url), api_key=other) as stranger, pytest.raises(openai.NotFoundError):
        stranger.responses.create(model="echo", input="two", previous_response_id=first.id)


def test_responses_conversation_names_a_thread(client: openai.OpenAI, made: House) -> None:
    first = client.responses.create(model="agent", input="one", conversation="conv-1")
    assert made.ran[-1].thread_id == "conv-1"
    assert first.conversation is not None
    assert first.conversation.id == "conv-1"
    client.responses.create(model="agent", input="two", previous_response_id=first.id)
    assert made.ran[-1].thread_id == "conv-1"
    assert len(made.ran[-1].payload["input"]) == 1
    client.responses.create(model="agent", input="three")
    assert made.ran[-1].thread_id is None


def said(given: Any) -> list[tuple[str, str]]:
    return [(item["role"], item["content"]) for item in given]


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_with_a_model_is_kept(client: openai.OpenAI, made: House, stream: bool) -> None:
    """One that is no agent: its turns go before the next request, and are the conversation's items."""

    def ask(text: str, who: openai.OpenAI = client, **more: Any) -> Any:
        answer: Any = who.responses.create(model="echo", input=text, stream=stream, **more)
        return list(answer)[-1].response if stream else answer

    talk = client.conversations.create(items=[{"type": "message", "role": "developer", "content": "Be brief."}])
    first = ask("one", conversation=talk.id)
    assert (first.conversation.id, first.output_text) == (talk.id, "one")
    ask("!long", conversation=talk.id)
    with pytest.raises(openai.RateLimitError):
        ask("!refuse", conversation=talk.id)
    with contextlib.nullcontext() if stream else pytest.raises(openai.InternalServerError):
        assert ask("!break", conversation=talk.id).status == "failed"
    assert ask("not kept", conversation=talk.id, store=False).output_text == "not kept"
    ask("two", conversation=talk.id)
    history = [("developer", "Be brief."), ("user", "one"), ("assistant", "one"), ("user", "!long"), ("assistant", "!long")]
    assert said(made.ran[-1].payload["input"]) == [*history, ("user", "two")]
    assert said(made.ran[-2].payload["input"]) == [*history, ("user", "not kept")]
    items: list[Any] = list(client.conversations.items.list(talk.id, order="asc"))
    assert [(item.role, item.content[0].text) for item in items] == [*history, ("user", "two"), ("assistant", "two")]

    ask("three", previous_response_id=first.id)  # from there, and not on the conversation
    assert said(made.ran[-1].payload["input"]) == [*history[:3], ("user", "three")]
    other = made.key("mallory", "endpoint:echo")
    with openai.OpenAI(base_url=str(client.base_url), api_key=other, max_retries=0) as stranger:
        with pytest.raises(openai.NotFoundError, match="no conversation"):
            ask("mine?", stranger, conversation=talk.id)
        assert said(made.ran[-1].payload["input"])[-1] == ("user", "three")
        ask("mine?", stranger, conversation=talk.id, store=False)
        assert said(made.ran[-1].payload["input"]) == [("user", "mine?")]
    barred = made.key("barred")
    with openai.OpenAI(base_url=str(client.base_url), api_key=barred, max_retries=0) as stranger:
        with pytest.raises(openai.PermissionDeniedError):
            ask("hi", stranger, conversation="conv-of-the-barred")
        with pytest.raises(openai.NotFoundError):
            stranger.conversations.retrieve("conv-of-the-barred")

    assert client.conversations.items.delete(items[1].id, conversation_id=talk.id).id == talk.id
    ask("four", conversation=talk.id)
    assert ("user", "one") not in said(made.ran[-1].payload["input"])
    image: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x.test/a.png"}]}]
    with pytest.raises(openai.BadRequestError, match="Conversations keep text"):
        client.responses.create(model="echo", input=image, conversation=talk.id)
    assert client.conversations.delete(talk.id).deleted
    ask("anew", conversation=talk.id)
    assert said(made.ran[-1].payload["input"]) == [("user", "anew")]


def test_a_conversation_keeps_what_guardrails_let_pass(client: openai.OpenAI, made: House) -> None:
    made.gateway.limits.policies.set(
        "echo", {"guardrails": {side: {"pii": {"behavior": "MASK"}} for side in ("input", "output")}}
    )
    try:
        name, tools = f"conv-{time.time_ns()}", cast(Any, [{"type": "function", **TOOL["function"]}])
        begun = client.responses.create(model="echo", input="I am ann@example.org", conversation=name, background=True)
        wait_until(lambda: client.responses.retrieve(begun.id).status == "completed", 10)
        client.responses.create(model="echo", input="and?", conversation=name, tools=tools)
        items: list[Any] = list(client.conversations.items.list(name, order="asc"))
        assert [item.content[0].text for item in items[:2]] == ["I am [EMAIL]"] * 2
        assert (items[3].type, items[3].name) == ("function_call", "weather")
        answered: Any = [{"type": "function_call_output", "call_id": items[3].call_id, "output": "rain"}]
        client.responses.create(model="echo", input=answered, conversation=name)
        assert [item["type"] for item in made.ran[-1].payload["input"]][-3:] == [
            "message",
            "function_call",
            "function_call_output",
        ]
        assert "ann@" not in str(made.ran[-1].payload)
    finally:
        made.gateway.limits.policies.set("echo", {})


def test_embeddings_float_and_base64(client: openai.OpenAI, http: httpx.Client) -> None:
    assert client.embeddings.create(model="vectors", input=["abc", "a"]).data[1].embedding == [1.0, 0.5, -1.0]
    body = {"model": "vectors", "input": "abc", "encoding_format": "float"}
    assert http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"] == [3.0, 0.5, -1.0]
    coded = http.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    assert len(base64.b64decode(coded)) == 12


def test_completions(client: openai.OpenAI) -> None:
    assert client.completions.create(model="echo", prompt="hi you").choices[0].text == "hi you"
    assert (
        "".join(part.choices[0].text for part in client.completions.create(model="echo", prompt="hi you", stream=True))
        == "hi you"
    )


def test_models_are_those_one_may_query(client: openai.OpenAI, made: House) -> None:
    assert {"echo", "agent", "vectors"} <= {model.id for model in client.models.list()}
    with openai.OpenAI(base_url=str(client.base_url), api_key=made.key("ann", "endpoint:agent")) as ann:
        assert [model.id for model in ann.models.list()] == ["agent"]
        assert ann.models.retrieve("agent").id == "agent"
        with pytest.raises(openai.NotFoundError):
            ann.models.retrieve("echo")


@pytest.mark.anyio
async def test_async_client_sixteen_at_once(made: House, url: str) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{url}/ai-gateway/mlflow/v1", api_key=made.admin) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(model="echo", messages=ASK) for _ in range(16)))
    assert {answer.choices[0].message.content for answer in answers} == {"hello there"}
    assert len({answer.id for answer in answers}) == 16


@pytest.mark.anyio
async def test_two_hundred_streams_at_once_lose_no_row(made: House, url: str) -> None:
    import asyncio

    before = len(made.rows(endpoint="agent"))
    limits = httpx.Limits(max_connections=200)
    headers = {"authorization": f"Bearer {made.admin}"}
    body = {"model": "agent", "messages": [{"role": "user", "content": "a b c d e f g h"}], "stream": True}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60, trust_env=False) as client:
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(200)))
    assert {(answer.status_code, answer.text.count('"content":" ')) for answer in answers} == {(200, 7)}
    rows = made.rows(endpoint="agent")[before:]
    assert {row["databricks_request_id"] for row in rows} == {answer.headers["x-request-id"] for answer in answers}
    assert {row["status_code"] for row in rows} == {200}


def test_a_client_that_goes_before_its_body_is_whole(made: House, url: str, caplog: pytest.LogCaptureFixture) -> None:
    import socket

    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {made.admin}\r\ncontent-length: 99\r\n\r\n"
        )
        raw.sendall(head.encode() + b"{")
        time.sleep(0.1)
    time.sleep(0.2)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_invocations_by_body(http: httpx.Client) -> None:
    path = "/serving-endpoints/{}/invocations"
    chat = http.post(path.format("echo"), json={"messages": ASK, "client_request_id": "mine", "usage_context": {"team": "x"}})
    assert chat.json()["choices"][0]["message"]["content"] == "hello there"
    agent = http.post(
        path.format("agent"), json={"input": [{"role": "user", "content": "hey"}], "context": {"conversation_id": "c"}}
    )
    assert agent.json()["output"][0]["content"][0]["text"] == "hey"
    assert agent.json()["custom_outputs"]["thread_id"] == "c"
    embedded = http.post(path.format("vectors"), json={"input": ["abcd"]})
    assert embedded.json()["data"][0]["embedding"] == [4.0, 0.5, -1.0]
    assert http.post(path.format("echo"), json={"prompt": "hi"}).json()["choices"][0]["text"] == "hi"
    wrong = http.post(path.format("echo"), json={"dataframe_split": {}})
    assert wrong.status_code == 400
    assert "messages" in wrong.json()["message"]
    assert http.post(path.format("none"), json={"dataframe_split": {}}).status_code == 404
    one = path.format("echo/served-models/{}")
    assert http.post(one.format("echo-1"), json={"messages": ASK}).status_code == 200
    other = http.post(one.format("other"), json={"messages": ASK})
    assert (other.status_code, other.json()["message"]) == (404, "Endpoint 'echo' serves no entity 'other'; it serves echo-1.")


def test_journal_keeps_the_clients_own_tags(http: httpx.Client, made: House) -> None:
    body = {"messages": ASK, "client_request_id": "mine", "usage_context": {"team": "x"}}
    answer = http.post("/serving-endpoints/echo/invocations", json=body)
    (row,) = made.rows(request_id=answer.headers["x-request-id"])
    assert (row["client_request_id"], row["usage_context"]) == ("mine", {"team": "x"})


@pytest.mark.parametrize("body", [{"messages": ASK}, {"input": [{"role": "user", "content": "hello there"}]}])
def test_invocations_stream_is_data_lines_and_done(http: httpx.Client, body: Any) -> None:
    with http.stream("POST", "/serving-endpoints/agent/invocations", json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert lines.count("data: [DONE]") == 1


def test_refusal_before_the_first_event_is_a_real_status(http: httpx.Client) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "!refuse"}], "stream": True}
    answer = http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_failure_in_the_middle(client: openai.OpenAI, http: httpx.Client) -> None:
    asked: Any = [{"role": "user", "content": "!break"}]
    stream = client.chat.completions.create(model="echo", messages=asked, stream=True)
    with pytest.raises(openai.APIError, match="It broke"):
        list(stream)
    raw = http.post("/v1/chat/completions", json={"model": "echo", "messages": asked, "stream": True}).text
    assert raw.endswith("data: [DONE]\n\n")
    events = list(client.responses.create(model="echo", input="!break", stream=True))
    assert [event.type for event in events if event.type in ("response.completed", "response.failed")] == ["response.failed"]
    last: Any = events[-1]
    assert last.response.error.message == "It broke. Ask again."
    with pytest.raises(openai.InternalServerError, match="It broke"):
        client.responses.create(model="echo", input="!break")


def test_a_crash_tells_no_internals(http: httpx.Client, made: House) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": "!crash"}]})
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert made.rows(request_id=answer.headers["x-request-id"])[0]["status_code"] == 500


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [
        ("fails", 502, "HTTP 500"),
        ("missing", 424, "no model"),
        ("silent", 504, "did not answer"),
        ("busy", 429, "limit"),
        ("stops", None, "middle"),
    ],
)
def test_an_upstream_that_fails(client: openai.OpenAI, made: House, model: str, status: int | None, says: str) -> None:
    upstream = Upstream()
    patience = Timeouts(first_byte=0.5 if model == "silent" else 60, between=60)
    engine = ExternalChat(Address(upstream.url, model, KEY), timeouts=patience)
    made.opened.append(engine)
    made.endpoints.register(Endpoint("outside", "llm/v1/chat", engine.run))
    try:
        for stream in (True, False):
            with pytest.raises(openai.APIError, match=says) as caught:
                list(client.chat.completions.create(model="outside", messages=ASK, stream=stream))
            assert KEY not in str(caught.value)
            if status or not stream:
                assert isinstance(caught.value, openai.APIStatusError)
                assert caught.value.status_code == (status or 502)
            assert made.rows(newest=True, limit=1)[0]["status_code"] == (status or 502)
        if not status:
            assert [event.type for event in client.responses.create(model="outside", input="x", stream=True)][
                -1
            ] == "response.failed"
    finally:
        made.endpoints.remove("outside")
        upstream.close()


def test_several_choices_are_one_call(client: openai.OpenAI, made: House) -> None:
    """Each from the upstream by a request of its own, whichever wire it speaks; one row has them all."""
    upstream = Upstream()
    engine = ExternalChat(Address(upstream.url, "echo", KEY))
    made.opened.append(engine)
    made.endpoints.register(Endpoint("outside", "llm/v1/chat", engine.run))
    try:
        whole = client.chat.completions.with_raw_response.create(model="outside", messages=ASK, n=3, seed=7)
        body: Any = whole.parse()
        assert [each.index for each in body.choices] == [0, 1, 2]
        assert {each.message.content for each in body.choices} == {TEXT}
        assert (body.usage.prompt_tokens, body.usage.completion_tokens, body.usage.total_tokens) == (33, 21, 54)
        assert sorted(each["seed"] for each in upstream.requests) == [7, 8, 9]
        assert not any("n" in each for each in upstream.requests)
        (row,) = made.rows(request_id=whole.headers["x-request-id"])
        assert row["response"].count(TEXT) == 3
        assert row["total_tokens"] == 54

        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(model="outside", messages=ASK, n=2, tools=[TOOL], **options))
        calls: dict[tuple[int, int], str] = {}
        for choice in (each for chunk in chunks for each in chunk.choices):
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                calls[choice.index, call.index] = calls.get((choice.index, call.index), "") + (call.function.arguments or "")
        assert calls == {(n, k): f'{{"city": "{city}"}}' for n in (0, 1) for k, city in enumerate(("Rome", "Oslo"))}
        ends = [(each.index, each.finish_reason) for chunk in chunks for each in chunk.choices if each.finish_reason]
        assert ends == [(0, "tool_calls"), (1, "tool_calls")]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 36

        parts = list(client.completions.create(model="outside", prompt="hi", n=2, best_of=2, stream=True))
        said = {n: "".join(each.choices[0].text for each in parts if each.choices[0].index == n) for n in (0, 1)}
        assert said == {0: TEXT, 1: TEXT}
        assert len(client.completions.create(model="outside", prompt="hi", n=2).choices) == 2
        with pytest.raises(openai.BadRequestError, match="is an agent, which gives one answer") as caught:
            client.chat.completions.create(model="agent", messages=ASK, n=2)
        assert caught.value.param == "n"
        with pytest.raises(openai.BadRequestError, match="between 1 and 32"):
            client.chat.completions.create(model="outside", messages=ASK, n=33)
    finally:
        made.endpoints.remove("outside")
        upstream.close()


def test_incomplete_answers_say_length(client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": "!long"}]
    assert client.chat.completions.create(model="echo", messages=asked).choices[0].finish_reason == "length"
    answer = client.responses.create(model="echo", input="!long")
    assert answer.incomplete_details is not None
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_the_engine(made: House, url: str, stream: bool) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "!endless"}], "stream": stream}
    before, timeout = len(made.rows()), httpx.Timeout(60, read=60 if stream else 0.3)
    headers = {"authorization": f"Bearer {made.admin}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=timeout) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body)
    wait_until(lambda: len(made.rows()) > before and made.gateway.in_flight == 0, 60)
    assert made.rows(newest=True, limit=1)[0]["status_code"] == 499


def test_bodies_too_large_or_packed(made: House, http: httpx.Client) -> None:
    ten_mb = {"model": "echo", "messages": [{"role": "user", "content": "x" * 10_000_000}]}
    assert http.post("/v1/chat/completions", json=ten_mb).status_code == 200
    large = http.post("/v1/chat/completions", content=b" " * (17 << 20))
    assert large.status_code == 413
    assert "16 MB" in large.json()["error"]["message"]
    packed = gzip.compress(json.dumps({"model": "echo", "messages": ASK}).encode())
    assert http.post("/v1/chat/completions", content=packed, headers={"content-encoding": "gzip"}).status_code == 200
    halves = gzip.compress(b'{"model": "echo", ') + gzip.compress(json.dumps({"messages": ASK}).encode()[1:])
    assert http.post("/v1/chat/completions", content=halves, headers={"content-encoding": "gzip"}).status_code == 200
    for torn in (packed[:-4], packed[:20], gzip.compress(b"") * 100 + packed):
        assert http.post("/v1/chat/completions", content=torn, headers={"content-encoding": "gzip"}).status_code == 400
    bomb = gzip.compress(b" " * (20 << 20))
    assert http.post("/v1/chat/completions", content=bomb, headers={"content-encoding": "gzip"}).status_code == 413
    assert http.post("/v1/chat/completions", content=b"x", headers={"content-encoding": "br"}).status_code == 415


def test_five_thousand_messages(client: openai.OpenAI, made: House) -> None:
    history: Any = [{"role": "user" if turn % 2 == 0 else "assistant", "content": f"turn {turn}"} for turn in range(5001)]
    assert client.chat.completions.create(model="echo", messages=history).choices[0].message.content == "turn 5000"
    assert len(made.ran[-1].payload["input"]) == 5001


def test_keys_missing_wrong_and_without_grant(made: House, url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as client:
        body = {"model": "echo", "messages": ASK}
        for headers, openai_status, databricks_status in (({}, 401, 401), ({"authorization": "Bearer nope"}, 401, 403)):
            refused = client.post("/v1/chat/completions", json=body, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (openai_status, "invalid_api_key")
            row = made.rows(request_id=refused.headers["x-request-id"])
            assert [each["status_code"] for each in row] == [401]
            assert client.post("/serving-endpoints/echo/invocations", json=body, headers=headers).status_code == databricks_status
            assert client.post("/v1/chat/completions", content=b"{", headers=headers).status_code == 401
        for path in ("/serving-endpoints/echo/invocations", "/v1/chat/completions"):  # as Databricks' curl lines sign in
            assert client.post(path, json=body, auth=("token", made.admin)).status_code == 200
            assert client.post(path, json=body, auth=("token", "nope")).status_code in (401, 403)
            assert client.post(path, json=body, auth=("alice", made.admin)).status_code in (401, 403)
        assert client.get("/v1/models", auth=("token", made.admin)).status_code == 200
        assert client.get("/v1/models", headers={"authorization": "Basic ="}).status_code == 401
        bob = {"authorization": f"Bearer {made.key('bob')}"}
        forbidden = client.post("/v1/chat/completions", json=body, headers=bob)
        assert forbidden.status_code == 403
        assert "endpoint:echo" in forbidden.json()["error"]["message"]


def test_unknown_model_names_those_one_may_mean(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'echo'"):
        client.chat.completions.create(model="ecko", messages=ASK)
    with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
        client.chat.completions.create(model="vectors", messages=ASK)


def test_no_route_reaches_an_engine_past_the_gateway(tmp_path: Path) -> None:
    """With a gateway that denies everything, no path of the routers runs an engine or touches an index."""
    from starlette.testclient import TestClient

    from governance.call import forbidden

    class Index:
        async def asearch(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("an index was reached")

        document = asearch

    with house(tmp_path, indexes=Index()) as closed:

        class Deny:
            calls = 0

            async def call(self, call: Any, engine: Any) -> Any:
                Deny.calls += 1
                raise forbidden("closed")
                yield

            async def invoke(self, call: Any, engine: Any) -> Any:
                Deny.calls += 1
                raise forbidden("closed")

        async def reached(call: Any) -> Any:
            raise AssertionError("an engine was reached")
            yield

        deny: Any = Deny()
        closed.dispatcher.gateway = deny
        for endpoint in closed.endpoints:
            closed.endpoints.register(replace(endpoint, engine=reached))
        bodies: list[Any] = [
            {"model": name, "messages": ASK, "input": "x", "prompt": "x"} for name in ("echo", "agent", "vectors")
        ]
        bodies.append({"model": "echo", "messages": ASK, "input": "x", "prompt": "x", "conversation": "c"})
        tried = 0
        with TestClient(closed.app, raise_server_exceptions=True) as client:
            for path in paths(closed.app.router.routes):
                for method in ("GET", "POST", "PUT", "DELETE"):
                    for body in bodies:
                        filled = path.replace("{name}", body["model"]).replace("{name:path}", body["model"])
                        filled = filled.replace("{response_id}", "resp_1").replace("{path:path}", "x")
                        answer = client.request(method, filled, json=body, headers={"authorization": f"Bearer {closed.admin}"})
                        tried += 1
                        assert answer.headers["x-request-id"]
                        if (
                            method == "POST" and not path.endswith("/input_tokens") and "/conversations" not in path
                        ):  # which ask none
                            assert answer.status_code in (403, 404, 405), (method, filled, answer.text)
        assert tried > 100
        assert Deny.calls >= 3 * 18


def paths(routes: Any) -> set[str]:
    """Every path below `routes`, those of included routers too."""
    found: set[str] = set()
    for route in routes:
        if isinstance(path := getattr(route, "path", None), str) and path:
            found.add(path)
        nested = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if nested:
            found |= paths(nested)
    return found
