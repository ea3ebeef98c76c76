"""`langgraph_sdk`, unmodified, and the Vercel AI SDK's stream, against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from langgraph_sdk import get_client, get_sync_client
from langgraph_sdk.errors import AuthenticationError, ConflictError, NotFoundError

from tests.live import KEY, Live, serving, smalti, wait_until

AGENT = """
import asyncio
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from agents import AgentState, emit_delta

def build(model, retriever, *, tools=(), checkpointer=None, **_):
    async def answer(state):
        asked = state["messages"][-1].text
        if asked == "!ask":
            said = f"You said {interrupt({'question': 'Which one?'})}."
            emit_delta(said)
            return {"messages": [("assistant", said)]}
        if asked == "!fail":
            raise RuntimeError("broken")
        while asked == "!endless":
            emit_delta("more ")
            await asyncio.sleep(0.01)
        for word in asked.split(" "):
            emit_delta(word + " ")
        return {"messages": [("assistant", asked + " ")]}
    graph = StateGraph(AgentState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=checkpointer)
"""


BANK = """
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import StructuredTool
from agents.graphs import react

async def transfer(amount: int) -> str:
    return f"transferred {amount}"

class Teller(BaseChatModel):
    @property
    def _llm_type(self):
        return "teller"
    def bind_tools(self, tools, **more):
        return self
    def _generate(self, messages, stop=None, run_manager=None, **more):
        amounts = [word for word in messages[-1].text.split() if word.isdigit()] if messages[-1].type == "human" else []
        calls = [{"name": "transfer", "args": {"amount": int(each)}, "id": f"c{i}"} for i, each in enumerate(amounts)]
        said = "; ".join(m.text for m in messages if m.type == "tool")
        return ChatResult(generations=[ChatGeneration(message=AIMessage("" if calls else said, tool_calls=calls))])

def build(model, retriever, *, tools=(), checkpointer=None, **_):
    tool = StructuredTool.from_function(
        coroutine=transfer, name="transfer", description="Transfer money.", metadata={"approval": True}
    )
    return react.build(Teller(), None, tools=[tool], checkpointer=checkpointer)
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("project")
    (folder / "docs").mkdir()
    (folder / "docs" / "bridge.md").write_text("# Bridge\n\nThe bridge is 314 metres long.\n")
    (folder / "echo.py").write_text(AGENT)
    (folder / "bank.py").write_text(BANK)
    served = [
        {"name": name, "config": {"served_entities": [{"agent": {"builder": f"{folder}/{name}.py:build"}}]}}
        for name in ("echo", "bank")
    ]
    (folder / "smalti.yaml").write_text(json.dumps({"endpoints": served}))
    with serving(folder / "home", folder / "docs", config=folder / "smalti.yaml") as server:
        yield server


@pytest.fixture
def client(live: Live) -> Iterator[Any]:
    with get_sync_client(url=live.url, api_key=KEY) as opened:
        yield opened


def human(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


@contextmanager
def refused(status: int, says: str = "") -> Iterator[None]:
    """What the client raises where it waits for a run is httpx's own error."""
    with pytest.raises(httpx.HTTPStatusError) as caught:
        yield
    assert caught.value.response.status_code == status
    assert says in caught.value.response.json()["detail"]


def test_a_conversation(client: Any) -> None:
    assert {"assistant", "echo"} <= {each["assistant_id"] for each in client.assistants.search(limit=50)}
    assert client.assistants.get("echo")["graph_id"] == "echo"
    thread = client.threads.create(metadata={"team": "red"})
    assert (thread["status"], thread["values"]) == ("idle", None)
    wanted = ["values", "messages", "messages-tuple", "updates"]
    parts = list(client.runs.stream(thread["thread_id"], "echo", input=human("one two three"), stream_mode=wanted))
    assert parts[0].event == "metadata"
    assert [len(part.data["messages"]) for part in parts if part.event == "values"][-1] == 2
    assert parts[-1].event == "end"
    assert "".join(part.data[0]["content"] for part in parts if part.event == "messages") == "one two three "
    assert [part.data[0]["content"] for part in parts if part.event == "messages/complete"] == ["one two three "]
    state = client.threads.get_state(thread["thread_id"])
    assert [(m["type"], m["content"]) for m in state["values"]["messages"]] == [
        ("human", "one two three"),
        ("ai", "one two three "),
    ]
    assert client.threads.get_history(thread["thread_id"])[0]["checkpoint"] == state["checkpoint"]
    (run,) = client.runs.list(thread["thread_id"])
    assert (run["run_id"], run["status"]) == (parts[0].data["run_id"], "success")
    values = client.runs.wait(thread["thread_id"], "echo", input={"messages": [{"type": "human", "content": "and four"}]})
    assert [m["content"] for m in values["messages"]] == ["one two three", "one two three ", "and four", "and four "]

    (found,) = client.threads.search(metadata={"team": "red"})
    assert found["metadata"]["title"] == "one two three"
    assert client.threads.search(metadata={"team": "blue"}) == []
    assert client.threads.update(thread["thread_id"], metadata={"team": "blue"})["metadata"]["team"] == "blue"
    client.threads.delete(thread["thread_id"])
    with pytest.raises(NotFoundError):
        client.threads.get(thread["thread_id"])


def test_citations_of_the_default_agent(client: Any) -> None:
    values = client.runs.wait(None, "assistant", input=human("How long is the bridge?"))
    assert "314" in values["messages"][-1]["content"]
    assert values["citations"]
    thread = client.threads.create()["thread_id"]
    values = client.runs.wait(thread, "assistant", input=human("How long is the bridge?"))
    assert values["documents"][0]["source"] == "bridge.md"


def test_a_dropped_stream_is_joined_where_it_was_left(client: Any) -> None:
    thread = client.threads.create()["thread_id"]
    run = client.runs.create(thread, "echo", input=human(" ".join(f"w{i}" for i in range(20))))
    whole = list(client.runs.join_stream(thread, run["run_id"], stream_mode="messages-tuple"))
    ids = [part.id for part in whole if part.event == "messages"]
    assert len(set(ids)) == 20
    for position in (0, 7, 19):
        rest = list(client.runs.join_stream(thread, run["run_id"], stream_mode="messages-tuple", last_event_id=ids[position]))
        assert [part.id for part in rest if part.event == "messages"] == ids[position + 1 :]
    assert client.runs.join(thread, run["run_id"])["messages"][-1]["content"].startswith("w0 w1")


@pytest.mark.parametrize("thread", ["\U00016923\u00ee", "a b", "x%y"])
def test_a_thread_may_be_called_anything(live: Live, thread: str) -> None:
    body = {"assistant_id": "echo", "input": {"messages": [{"role": "user", "content": "x"}]}, "if_not_exists": "create"}
    with live.client() as client:
        answer = client.post(f"/threads/{quote(thread)}/runs", json=body).raise_for_status()
        assert client.get(f"{answer.headers['content-location']}/join").json()["messages"]
        streamed = client.post(f"/threads/{quote(thread)}/runs/stream", json=body).raise_for_status()
        assert streamed.headers["location"].startswith(f"/threads/{quote(thread, safe='')}/runs/")


def test_cancelled_and_gone_on_with(client: Any) -> None:
    thread = client.threads.create()["thread_id"]
    run = client.runs.create(thread, "echo", input=human("!endless"))
    wait_until(lambda: client.threads.get(thread)["status"] == "busy")
    with refused(409, "is answering another message"):
        client.runs.wait(thread, "echo", input=human("now"))
    client.runs.cancel(thread, run["run_id"])
    assert client.runs.get(thread, run["run_id"])["status"] == "interrupted"
    assert client.runs.wait(thread, "echo", input=human("now"))["messages"][-1]["content"] == "now "
    client.runs.create(thread, "echo", input=human("!endless"))
    values = client.runs.wait(thread, "echo", input=human("instead"), multitask_strategy="interrupt")
    assert values["messages"][-1]["content"] == "instead "


def test_a_person_is_asked(client: Any) -> None:
    thread = client.threads.create()["thread_id"]
    values = client.runs.wait(thread, "echo", input=human("!ask"))
    assert values["__interrupt__"][0]["value"] == {"question": "Which one?"}
    found = client.threads.get(thread)
    assert found["status"] == "interrupted"
    assert client.threads.get_state(thread)["tasks"][0]["interrupts"]
    values = client.runs.wait(thread, "echo", command={"resume": "the red one"})
    assert values["messages"][-1]["content"] == "You said the red one."
    with refused(422, "waits for a person"):
        client.runs.wait(thread, "echo", command={"resume": "again"})


def test_what_is_refused_says_why(client: Any, live: Live) -> None:
    with get_sync_client(url=live.url, api_key="wrong") as stranger, pytest.raises(AuthenticationError):
        stranger.threads.create()
    with refused(404, "there are: assistant, bank, echo"):
        client.runs.wait(None, "nobody", input=human("x"))
    with refused(422, "input.messages"):
        client.runs.wait(None, "echo", input={"messages": []})
    with pytest.raises(Exception, match=r"server_error|INTERNAL|fail"):
        client.runs.wait(None, "echo", input=human("!fail"))
    thread = client.threads.create()["thread_id"]
    with pytest.raises(ConflictError):
        client.threads.create(thread_id=thread)
    assert client.threads.create(thread_id=thread, if_exists="do_nothing")["thread_id"] == thread


@pytest.mark.anyio
async def test_the_asynchronous_client(live: Live) -> None:
    async with get_client(url=live.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        parts = [part async for part in client.runs.stream(None, "echo", input=human("a b"), stream_mode="messages-tuple")]
    assert [part.data[0]["content"] for part in parts if part.event == "messages"] == ["a ", "b "]


def test_the_ui_message_stream(live: Live) -> None:
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "How long is the bridge?"}]}
    with live.client() as client:
        answer = client.post("/v1/agents/assistant/chat", json={"id": "chat", "messages": [message], "trigger": "submit-message"})
        refused = client.post("/v1/agents/assistant/chat", json={"messages": [{"role": "user"}]})
        failed = client.post(
            "/v1/agents/echo/chat", json={"messages": [{**message, "parts": [{"type": "text", "text": "!fail"}]}]}
        )
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    parts = [json.loads(line) for line in lines[:-1]]
    kinds = [part["type"] for part in parts]
    assert kinds[:3] == ["start", "start-step", "text-start"]
    assert kinds[-2:] == ["finish-step", "finish"]
    assert kinds.count("text-start") == kinds.count("text-end") == 1
    assert "314" in "".join(part["delta"] for part in parts if part["type"] == "text-delta")
    assert [part["title"] for part in parts if part["type"] == "source-url"] == ["Bridge"]
    assert refused.status_code == 400
    assert "messages[0].parts" in refused.json()["error"]["message"]
    assert failed.status_code >= 500 or '"type":"error"' in failed.text
    assert httpx.post(f"{live.url}/v1/agents/assistant/chat", json={}, trust_env=False).status_code == 401


def test_a_user_sees_and_deletes_what_is_remembered_and_nobody_elses(live: Live, client: Any) -> None:
    with live.client() as admin:
        ann = admin.post("/api/2.0/smalti/keys", json={"name": "ann"}).json()["key"]
    store = client.store
    store.put_item(["memories"], key="k1", value={"text": "The admin drinks tea."})
    store.put_item(["memories"], key="k2", value={"text": "The admin's car is red.", "age": 3})
    store.put_item(["notes", "work"], key="k3", value={"text": "Friday is off."}, index=False)
    assert store.get_item(["memories"], key="k1")["value"] == {"text": "The admin drinks tea."}
    found = store.search_items(["memories"], query="which colour is the car", limit=1)["items"]
    assert (found[0]["key"], found[0]["score"] > 0.2) == ("k2", True)
    assert [item["key"] for item in store.search_items([], filter={"age": 3})["items"]] == ["k2"]
    assert store.list_namespaces(prefix=["notes"])["namespaces"] == [["notes", "work"]]
    with get_sync_client(url=live.url, api_key=ann) as other:
        assert other.store.search_items([])["items"] == []
        other.store.delete_item(["memories"], key="k1")
        with pytest.raises(NotFoundError):
            other.store.get_item(["memories"], key="k1")
    told = smalti("memory", "list", "--query", "tea", "--json", home=live.home, SMALTI_KEY=KEY)
    assert json.loads(told.stdout)[0]["value"] == "The admin drinks tea.", told.stderr
    assert smalti("memory", "delete", "k1", home=live.home, SMALTI_KEY=ann).returncode == 1, "it is not hers"
    assert smalti("memory", "delete", "k1", home=live.home, SMALTI_KEY=KEY).returncode == 0
    assert [item["key"] for item in store.search_items(["memories"])["items"]] == ["k2"]
    assert smalti("memory", "clear", home=live.home, SMALTI_KEY=KEY).stdout == "Forgotten: 2\n"
    with live.client() as raw:
        for body, param in (({"key": "k", "value": 3}, "value"), ({"namespace": "x", "key": "k", "value": {}}, "namespace")):
            answer = raw.put("/store/items", json=body)
            assert (answer.status_code, param in answer.json()["detail"]) == (422, True), answer.text
        assert raw.post("/store/items/search", json={"filter": {"a": {"$near": 1}}}).status_code == 422
        assert raw.put("/store/items", json={"key": "k", "value": {"text": "x" * 70_000}}).status_code == 422


def test_a_user_and_a_service_principal_of_one_name_share_nothing(live: Live, client: Any) -> None:
    with live.client() as admin:
        made = {}
        for kind in ("user", "service_principal"):
            made[kind] = admin.post("/api/2.0/smalti/keys", json={"name": "twin", "kind": kind}).json()["key"]
            told = {"access_control_list": [{f"{kind}_name": "twin", "permission_level": "CAN_QUERY"}]}
            admin.patch("/api/2.0/permissions/serving-endpoints/echo", json=told).raise_for_status()
    with (
        get_sync_client(url=live.url, api_key=made["user"]) as user,
        get_sync_client(url=live.url, api_key=made["service_principal"]) as robot,
    ):
        thread = user.threads.create()["thread_id"]
        run = user.runs.create(thread, "echo", input=human("mine alone"))["run_id"]
        user.runs.join(thread, run)
        user.store.put_item(["memories"], key="k", value={"text": "tea"})
        assert robot.threads.search() == []
        for ask in (robot.threads.get, robot.threads.get_state, robot.threads.get_history, robot.runs.list, robot.threads.delete):
            with pytest.raises(NotFoundError):
                ask(thread)
        with pytest.raises(NotFoundError):
            robot.runs.get(thread, run)
        with refused(404):
            robot.runs.wait(thread, "echo", input=human("go on"))
        assert robot.store.search_items([])["items"] == []
        assert [each["thread_id"] for each in user.threads.search()] == [thread]
        assert user.runs.get(thread, run)["status"] == "success"
        asked = {"model": "echo", "input": "and?", "conversation": thread}
        for secret, status in ((made["service_principal"], 404), (made["user"], 200)):
            headers = {"Authorization": f"Bearer {secret}"}
            answer = httpx.post(f"{live.url}/v1/responses", json=asked, headers=headers, timeout=60, trust_env=False)
            assert answer.status_code == status, answer.text
