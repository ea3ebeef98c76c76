"""Tools from the settings: each use is a governed call on behalf of the asker, and what it refuses the model is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from pydantic import ValidationError
from sqlalchemy import create_engine

from agents.agent import Agent
from agents.graphs import react
from agents.models import ScriptedModel
from agents.runtime import Runtime
from governance.call import Call, CallError, Event
from serving.agent_settings import ToolDeclaration
from serving.endpoint import Endpoint
from serving.engines.agent import agent_engine
from serving.engines.function import arguments, function_engine
from serving.protocols.chat import Encoder, decode
from serving.settings import Settings, SettingsError
from serving.tools import make_tools
from tests.serving.upstream import House, house

pytestmark = pytest.mark.anyio


def add(a: int, b: int = 1) -> int:
    return a + b


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[House]:
    engine = create_engine(f"sqlite:///{tmp_path}/threads.db")
    with house(tmp_path) as opened:
        opened.runtime = Runtime(engine, tmp_path / "checkpoints.db")  # type: ignore[attr-defined]
        opened.endpoints.register(Endpoint("main.default.add", "predict", function_engine(add), description="Add numbers."))
        yield opened
        await opened.runtime.close()  # type: ignore[attr-defined]
    engine.dispose()


def serve(made: House, model: ScriptedModel, *tools: dict[str, Any], name: str = "analyst") -> None:
    declared = [ToolDeclaration.model_validate(tool) for tool in tools]
    given = make_tools(name, declared, made.dispatcher, lambda endpoint: arguments(add) if "add" in endpoint else ())
    agent = Agent(name, react.build, model, None, tools=given)
    made.endpoints.register(Endpoint(name, "agent/v1/responses", agent_engine(made.runtime, agent)))  # type: ignore[attr-defined]


async def ask(made: House, key: str, name: str = "analyst", items: list[Any] | None = None, **more: Any) -> list[Event]:
    payload = {"input": items or [{"type": "message", "role": "user", "content": "go on"}]}
    call = Call(name, "agent", payload, credential=key, stream=True, **more)
    return [event async for event in made.dispatcher.stream(call)]


def calling(name: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": "c1"}])


def told(model: ScriptedModel) -> str:
    return next(message.content for message in model.calls[-1] if message.type == "tool")


async def test_a_function_is_a_tool_with_its_schema_and_needs_its_grant(made: House) -> None:
    model = ScriptedModel(replies=[calling("main_default_add", a=2, b=3), "5", calling("main_default_add", a=2), "no"])
    serve(made, model, {"endpoint": "main.default.add"})
    granted = made.key("ann", "endpoint:analyst", "endpoint:main.default.add")
    events = await ask(made, granted)
    assert told(model) == "[5]"
    schema = model.bound[0].tool_call_schema
    assert schema["properties"] == {"a": {"type": "integer"}, "b": {"type": "integer"}}
    assert schema["required"] == ["a"]
    outer = events[-1].data["response"]["id"].removeprefix("resp_")
    inner = [row for row in made.rows() if row["parent_request_id"] == outer]
    assert [(row["endpoint_name"], row["task"], row["requester"]) for row in inner] == [("main.default.add", "predict", "ann")]
    await ask(made, made.key("bob", "endpoint:analyst"))
    assert "may not" in told(model), "another caller's grant does not count"


async def test_a_function_refuses_what_it_does_not_take(made: House) -> None:
    for inputs, says in (({"x": 1}, "takes (a: 'int', b: 'int' = 1)"), ([1], "arguments by name")):
        with pytest.raises(CallError) as caught:
            await made.dispatcher.invoke(Call("main.default.add", "predict", {"inputs": inputs}, credential=made.admin))
        assert caught.value.status == 400
        assert says in caught.value.message


async def test_what_a_function_raises_is_told_and_what_we_raise_is_not(made: House) -> None:
    def broken(a: int) -> int:
        return [][a]

    for tells, says in (
        (True, "main.default.broken raised IndexError: list index out of range"),
        (False, "failed inside the server"),
    ):
        made.endpoints.register(Endpoint("main.default.broken", "predict", function_engine(broken, tells=tells)))
        with pytest.raises(CallError) as caught:
            await made.dispatcher.invoke(Call("main.default.broken", "predict", {"inputs": {"a": 1}}, credential=made.admin))
        assert (caught.value.status, says in caught.value.message) == (500, True)


async def test_sql_over_tables_cites_its_query(made: House, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("country,amount\nIT,10\nIT,20\n")
    model = ScriptedModel(
        replies=[
            calling("query_tables", sql="SELECT sum(amount) AS total FROM orders"),
            calling("query_tables", sql="DROP TABLE orders"),
            "The total is 30.",
        ]
    )
    serve(made, model, {"sql": {"orders": str(tmp_path / "orders.csv")}})
    key = made.key("ann", "endpoint:analyst", "endpoint:analyst.sql")
    await ask(made, key)
    assert "orders(country VARCHAR, amount BIGINT)" in model.bound[0].description
    first, second = [m.content for m in model.calls[-1] if m.type == "tool"]
    assert "```sql\nSELECT sum(amount) AS total FROM orders\n```" in first
    assert "| 30 |" in first
    assert "only one SELECT" in second
    rows = [row for row in made.rows() if row["endpoint_name"] == "analyst.sql"]
    assert [row["status_code"] for row in rows] == [200, 400]
    assert "DROP TABLE" in json.dumps(rows[1]["request"])
    with pytest.raises(SettingsError, match="missing"):
        serve(made, model, {"sql": {"orders": str(tmp_path / "missing.csv")}})


async def test_an_agent_is_a_tool_and_a_circle_ends(made: House) -> None:
    model = ScriptedModel(replies=[calling("agent", question="one two"), "done"])
    serve(made, model, {"endpoint": "agent", "description": "A colleague."})
    await ask(made, made.admin)
    assert "one two" in told(model)
    assert [call.thread_id for call in made.ran] == [None]
    circle = ScriptedModel(replies=[calling("me", question="again")] * 5 + ["stop"] * 6)
    serve(made, circle, {"endpoint": "me"}, name="me")
    events = await ask(made, made.admin, "me")
    assert events[-1].type == "response.completed"
    assert any("have called each other already" in m.content for call in circle.calls for m in call if m.type == "tool")


async def test_approval_over_the_responses_protocol(made: House) -> None:
    model = ScriptedModel(replies=[calling("main_default_add", a=2, b=3), "It is 5."])
    serve(made, model, {"endpoint": "main.default.add", "approval": True})
    first = (await ask(made, made.admin))[-1].data["response"]
    (request,) = [item for item in first["output"] if item["type"] == "mcp_approval_request"]
    assert (request["name"], json.loads(request["arguments"])) == ("main_default_add", {"a": 2, "b": 3})
    from openai.types.responses import Response

    Response.model_validate(first)
    said = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True, "arguments": '{"a": 40}'}
    other = made.key("eve", "endpoint:analyst", "endpoint:main.default.add")
    with pytest.raises(CallError) as caught:
        await ask(made, other, items=[said])
    assert caught.value.status == 404
    last = (await ask(made, made.admin, items=[said]))[-1].data["response"]
    assert told(model) == "[41]"
    assert last["output"][0]["content"][0]["text"] == "It is 5."


async def test_approval_over_chat_completions(made: House) -> None:
    """It is a tool call there, and its tool message decides."""

    async def chat(messages: list[Any], stream: bool) -> Any:
        request = decode({"model": "analyst", "messages": messages, "stream": stream})
        call = Call("analyst", "agent", request.payload, credential=made.admin, stream=stream)
        encoder = Encoder(call)
        if not stream:
            return json.loads(encoder.body(await made.dispatcher.invoke(call)))["choices"][0]
        sent = b"".join([encoder.event(event) async for event in made.dispatcher.stream(call)])
        return [json.loads(line[6:])["choices"][0] for line in sent.decode().splitlines() if line.startswith("data: {")]

    asked: list[Any] = [{"role": "user", "content": "go on"}]
    serve(
        made, ScriptedModel(replies=[calling("main_default_add", a=2, b=3)]), {"endpoint": "main.default.add", "approval": True}
    )
    parts = await chat(asked, True)
    (streamed,) = [part["delta"]["tool_calls"][0] for part in parts if "tool_calls" in part["delta"]]
    assert (streamed["function"]["name"], parts[-1]["finish_reason"]) == ("main_default_add", "tool_calls")
    model = ScriptedModel(replies=[calling("main_default_add", a=2, b=3), "Five."])
    serve(made, model, {"endpoint": "main.default.add", "approval": True})
    first = await chat(asked, False)
    (call,) = first["message"]["tool_calls"]
    assert (first["finish_reason"], json.loads(call["function"]["arguments"])) == ("tool_calls", {"a": 2, "b": 3})
    asked.append(first["message"])

    def decided(content: str) -> list[Any]:
        return [*asked, {"role": "tool", "tool_call_id": call["id"], "content": content}]

    with pytest.raises(CallError, match="decides an approval"):
        await chat(decided("I have run it"), False)
    last = await chat(decided('{"approve": true, "arguments": {"a": 40}}'), False)
    assert last["message"]["content"] == "Five."
    assert model.calls[-1][-1].content == "[41]"


def test_settings(tmp_path: Path) -> None:
    file = tmp_path / "smalti.yaml"
    file.write_text(
        "functions:\n- {name: main.default.add, source: './f.py:add'}\n"
        "endpoints:\n- name: a\n  config:\n    served_entities:\n    - agent:\n        builder: react\n        tools:\n"
        "        - {endpoint: main.default.add, approval: true}\n        - {sql: {orders: orders.csv}}\n        - {index: docs}\n"
    )
    settings = Settings.load(file)
    needed = settings.resources("endpoint:a")
    assert needed[1:] == ["endpoint:main.default.add", "endpoint:a.sql", "index:main.default.docs"]
    with pytest.raises(ValidationError, match="exactly one"):
        ToolDeclaration.model_validate({"endpoint": "a", "index": "b"})
