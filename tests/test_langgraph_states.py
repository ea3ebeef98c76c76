"""The states of threads with `langgraph_sdk`: history, forks, changes, approvals in LangChain's shape; and what is not there."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from langgraph_sdk import get_sync_client
from langgraph_sdk.errors import ConflictError, NotFoundError, UnprocessableEntityError

from tests.live import Live, wait_until
from tests.test_langgraph_client import client, human, live, refused

__all__ = ["client", "live"]


def said(state: Any) -> list[str]:
    return [message["content"].strip() for message in (state.get("values") or state)["messages"]]


def endless_at(state: Any) -> dict[str, Any]:
    """A run from the parent of a state, which its client leaves."""
    at = {"checkpoint": state["parent_checkpoint"], "on_disconnect": "cancel", "stream_mode": ["values"]}
    return {"assistant_id": "echo", "input": human("!endless"), **at}


def leaf(states: list[Any]) -> list[list[str]]:
    parents = {state["parent_checkpoint"]["checkpoint_id"] for state in states if state["parent_checkpoint"]}
    return [said(state) for state in states if state["checkpoint"]["checkpoint_id"] not in parents]


@pytest.fixture
def thread(client: Any) -> str:
    """Two questions, answered."""
    made = client.threads.create(graph_id="echo")["thread_id"]
    assert client.threads.get_state(made)["checkpoint"] is None
    assert client.threads.get_history(made) == []
    for text in ("one", "two"):
        client.runs.wait(made, "echo", input=human(text))
    return made


def test_history_is_told_newest_first_and_by_pages(client: Any, thread: str) -> None:
    states = client.threads.get_history(thread)
    assert [len(said(state)) for state in states] == [4, 3, 2, 1, 0]
    assert [state["next"] for state in states] == [[], ["echo"], [], ["echo"], []]
    assert [state["parent_checkpoint"] for state in states] == [*(state["checkpoint"] for state in states[1:]), None]
    assert client.threads.get_state(thread) == states[0]
    for state in states:
        assert client.threads.get_state(thread, checkpoint=state["checkpoint"]) == state
        assert client.threads.get_state(thread, checkpoint_id=state["checkpoint"]["checkpoint_id"]) == state
    assert client.threads.get_history(thread, limit=2, before=states[1]["checkpoint"]) == states[2:4]
    assert client.threads.get_history(thread, checkpoint=states[2]["checkpoint"]) == states[2:3]
    assert client.threads.get_history(thread, metadata={"source": "input"}) == states[4:]
    assert client.threads.get_history(thread, select=["next"], limit=1) == [{"next": []}]
    with pytest.raises(NotFoundError):
        client.threads.get_state(thread, checkpoint_id="nowhere")
    with pytest.raises(UnprocessableEntityError):
        client.threads.get_history(thread, limit=0)


def test_a_question_is_edited_and_an_answer_made_again(client: Any, thread: str) -> None:
    """As a chat page does: from the parent of the state in which the message is seen first."""
    states = client.threads.get_history(thread)
    before_two, at_two = states[2]["checkpoint"], states[1]["checkpoint"]
    parts = list(client.runs.stream(thread, "echo", input=human("TWO"), checkpoint=before_two, stream_mode="values"))
    assert [said(part.data) for part in parts if part.event == "values"][-1] == ["one", "one", "TWO", "TWO"]
    assert said(client.runs.wait(thread, "echo", checkpoint_id=at_two["checkpoint_id"])) == ["one", "one", "two", "two"]
    now = client.threads.get_history(thread, limit=100)
    assert leaf(now) == [["one", "one", "two", "two"], ["one", "one", "TWO", "TWO"], ["one", "one", "two", "two"]]
    assert {state["checkpoint"]["checkpoint_id"] for state in states} < {state["checkpoint"]["checkpoint_id"] for state in now}
    head = now[0]["checkpoint"]
    assert said(client.runs.wait(thread, "echo", input=human("three"), checkpoint=head))[-2:] == ["three", "three"]
    with refused(422, "nothing to answer"):
        client.runs.wait(thread, "echo")
    with refused(404, "no state"):
        client.runs.wait(thread, "echo", input=human("x"), checkpoint_id="nowhere")
    with refused(422, "without a thread"):
        client.runs.wait(None, "echo")


def test_a_state_is_changed_and_gone_on_from(client: Any, live: Live) -> None:
    thread = client.threads.create()["thread_id"]
    with pytest.raises(UnprocessableEntityError, match="no agent yet"):
        client.threads.update_state(thread, human("hello"))
    client.threads.update(thread, metadata={"graph_id": "echo"})
    told = client.threads.update_state(thread, human("hello"), as_node="__start__")
    state = client.threads.get_state(thread)
    assert (told["checkpoint"], state["next"]) == (state["checkpoint"], ["answer"])
    assert said(client.runs.wait(thread, "echo")) == ["hello", "hello"]
    answer = client.threads.get_state(thread)["values"]["messages"][-1]
    client.threads.update_state(thread, {"messages": [{**answer, "content": "better"}]})
    assert said(client.threads.get_state(thread)) == ["hello", "better"]
    assert len(client.threads.get_history(thread)) == 4, "the answer as it was stays a state"
    for values, node in (({"nothing": 1}, None), (human("x"), "nowhere"), ({"messages": [{"role": 1}]}, None), ([], None)):
        with pytest.raises(UnprocessableEntityError):
            client.threads.update_state(thread, values, as_node=node)
    with pytest.raises(UnprocessableEntityError):
        client.threads.update_state(thread, {"nothing": 1}, checkpoint=state["checkpoint"])
    assert said(client.threads.get_state(thread)) == ["hello", "better"], "what is refused changes nothing"
    made = client.threads.create(
        graph_id="echo",
        supersteps=[
            {"updates": [{"values": human("a"), "as_node": "__start__"}]},
            {"updates": [{"values": {"messages": {"role": "assistant", "content": "b"}}, "as_node": "answer"}]},
        ],
    )
    assert said(made) == ["a", "b"]
    with live.client() as admin:
        ann = admin.post("/api/2.0/smalti/keys", json={"name": "ann"}).json()["key"]
    with get_sync_client(url=live.url, api_key=ann) as other:
        checkpoint = state["checkpoint"]
        for ask in (
            lambda: other.threads.update_state(thread, human("x")),
            lambda: other.threads.get_state(thread, checkpoint=checkpoint),
            lambda: other.threads.get_history(thread),
            lambda: other.threads.copy(thread),
        ):
            with pytest.raises(NotFoundError):
                ask()
        assert other.threads.prune([thread]) == {"pruned_count": 0}
    assert said(client.threads.get_state(thread)) == ["hello", "better"]


def test_approvals_in_langchains_shape(client: Any) -> None:
    thread = client.threads.create()["thread_id"]

    def pay(text: str, *decisions: Any) -> list[str]:
        asked = client.runs.wait(thread, "bank", input=human(text))["__interrupt__"]
        requests = asked[0]["value"]["action_requests"]
        assert [request["args"]["amount"] for request in requests] == [int(word) for word in text.split()]
        assert asked[0]["value"]["review_configs"] == [
            {"action_name": "transfer", "allowed_decisions": ["approve", "edit", "reject"]}
        ]
        assert client.threads.get_state(thread)["tasks"][0]["interrupts"] == asked
        with refused(422, f"all {len(requests)} calls"):
            client.runs.wait(thread, "bank", command={"resume": {"decisions": []}})
        return said(client.runs.wait(thread, "bank", command={"resume": {"decisions": list(decisions)}}))

    edited = {"type": "edit", "edited_action": {"name": "transfer", "args": {"amount": 66}}}
    assert pay("5", {"type": "approve"})[-1] == "transferred 5"
    assert pay("6 7", edited, {"type": "reject", "message": "too much"})[-1].endswith(
        "transferred 66; A person did not approve this call: too much"
    )
    wrong = [{"type": "respond"}, {**edited, "edited_action": {"name": "rob", "args": {}}}, {"type": "edit"}, "approve"]
    client.runs.wait(thread, "bank", input=human("8"))
    for decision in wrong:
        with refused(422, "decision"):
            client.runs.wait(thread, "bank", command={"resume": {"decisions": [decision]}})
    interrupt = client.threads.get_state(thread)["interrupts"][0]["id"]
    by_id = {interrupt: {"decisions": [{"type": "approve"}]}}
    values = client.runs.wait(thread, "bank", command={"resume": by_id})
    assert said(values)[-1].endswith("transferred 8")
    at_result = client.threads.get_history(thread, limit=2)[1]["checkpoint"]
    assert said(client.runs.wait(thread, "bank", checkpoint=at_result)) == said(values), "what was approved is not asked again"
    client.runs.wait(thread, "bank", input=human("9"))
    ended = client.runs.wait(thread, "bank", command={"goto": "__end__"})
    assert "not run" in said(ended)[-2]
    assert client.threads.get(thread)["status"] == "idle"


def test_a_run_makes_room_for_another(client: Any, thread: str) -> None:
    before = client.threads.get_state(thread)
    with client.threads.http.client.stream("POST", f"/threads/{thread}/runs/stream", json=endless_at(before)) as answer:
        first = next(line for line in answer.iter_lines() if line.startswith("data: {") and "messages" in line)
    assert said(json.loads(first[6:])) == ["one", "one", "two", "!endless"], "where it goes on from is told at once"
    wait_until(lambda: client.threads.get(thread)["status"] == "idle")
    client.threads.update_state(thread, None, checkpoint=before["checkpoint"])
    assert said(client.threads.get_state(thread)) == said(before)
    endless = client.runs.create(thread, "echo", input=human("!endless"))["run_id"]
    # what is asked is seen while it is answered
    wait_until(lambda: said(client.threads.get_state(thread))[-1] == "!endless", 60)
    assert next(iter(client.threads.join_stream(thread))).data["run_id"] == endless
    instead = client.runs.wait(thread, "echo", input=human("three"), multitask_strategy="rollback")
    assert said(instead) == [*said(before), "three", "three"]
    with pytest.raises(NotFoundError):
        client.runs.get(thread, endless)
    endless = client.runs.create(thread, "echo", input=human("!endless"))["run_id"]
    client.runs.cancel(thread, endless, wait=True, action="rollback")
    assert said(client.threads.get_state(thread)) == said(instead)
    with pytest.raises(NotFoundError):
        client.runs.cancel(thread, endless)
    ended = client.runs.list(thread, limit=1)[0]["run_id"]
    with pytest.raises(ConflictError):
        client.runs.cancel(thread, ended, action="rollback")
    slow = client.runs.create(thread, "echo", input=human(" ".join("abcdefgh")))
    assert said(client.runs.wait(thread, "echo", input=human("last"), multitask_strategy="enqueue"))[-3:][1] == "last"
    assert client.runs.get(thread, slow["run_id"])["status"] == "success"
    client.runs.delete(thread, slow["run_id"])
    going = client.runs.create(thread, "echo", input=human("!endless"))["run_id"]
    client.runs.cancel_many(thread_id=thread, run_ids=[going])
    assert client.runs.get(thread, going)["status"] == "interrupted"


def test_a_client_that_leaves_ends_its_run_where_it_says_so(client: Any, live: Live, thread: str) -> None:
    body = {"assistant_id": "echo", "input": human("!endless"), "on_disconnect": "cancel"}
    with pytest.raises(httpx.ReadTimeout), live.client() as leaving:
        leaving.post(f"/threads/{thread}/runs/wait", json=body, timeout=httpx.Timeout(60, read=0.5))
    wait_until(lambda: [each["status"] for each in client.runs.list(thread, limit=1)] == ["interrupted"], 60)
    wait_until(lambda: client.threads.get(thread)["status"] == "idle", 60)


def test_threads_are_found_copied_and_pruned(client: Any, thread: str) -> None:
    wanted = {"metadata": {"graph_id": "echo"}, "limit": 100}
    assert thread in [each["thread_id"] for each in client.threads.search(**wanted, select=["thread_id"])]
    assert client.threads.count(metadata={"graph_id": "nobody"}) == 0
    found = client.threads.search(**wanted, sort_by="created_at", sort_order="asc")
    assert [each["created_at"] for each in found] == sorted(each["created_at"] for each in found)
    copied = client.threads.copy(thread)["thread_id"]
    assert leaf(client.threads.get_history(copied)) == [said(client.threads.get_state(thread))]
    root = client.threads.get_history(copied)[-1]["checkpoint"]
    client.runs.wait(copied, "echo", input=human("again"), checkpoint=root)
    assert len(client.threads.get_history(copied, limit=100)) == 7
    assert client.threads.prune([copied], strategy="keep_latest") == {"pruned_count": 1}
    assert leaf(client.threads.get_history(copied)) == [["again", "again"]]
    assert client.threads.prune([copied, copied, "nobody"]) == {"pruned_count": 1}
    with pytest.raises(NotFoundError):
        client.threads.get(copied)
    assert len(said(client.threads.get_state(thread))) == 4


def test_assistants_tell_what_they_are(client: Any) -> None:
    assert client.assistants.count() == 3
    nodes = {node["id"] for node in client.assistants.get_graph("bank")["nodes"]}
    assert {"__start__", "answer", "tools", "__end__"} <= nodes
    assert "messages" in client.assistants.get_schemas("echo")["input_schema"]["properties"]
    assert client.assistants.get_subgraphs("echo") == {}
    assert client.assistants.get_versions("echo")[0]["version"] == 1


def test_what_is_not_there_says_so(client: Any, live: Live) -> None:
    schedule = {"schedule": "* * * * *"}
    for ask, why in (
        (lambda: client.crons.create("echo", **schedule), "no crons"),
        (lambda: client.crons.create_for_thread("x", "echo", **schedule), "no crons"),
        (client.crons.search, "no crons"),
        (lambda: client.assistants.create("echo"), "smalti.yaml"),
        (lambda: client.assistants.delete("echo"), "smalti.yaml"),
        (lambda: client.runs.create_batch([{"assistant_id": "echo"}]), "one at a time"),
        (lambda: client.store.get_item(["a"], key="b"), "Nothing of yours"),
    ):
        with pytest.raises(NotFoundError, match=why):
            ask()
    with pytest.raises(UnprocessableEntityError, match="ttl"):
        client.store.put_item(["a"], key="b", value={}, ttl=5)
    with live.client() as raw:
        for method, path in (
            ("PUT", "/store/items"),
            ("POST", "/threads"),
            ("POST", "/store/namespaces"),
            ("POST", "/runs/wait"),
        ):
            answer = raw.request(method, path, content=b"[")
            assert (answer.status_code, set(answer.json()) >= {"detail"}) == (422, True), (path, answer.text)
        image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
        body = {"assistant_id": "echo", "input": {"messages": [{"role": "user", "content": image}]}}
        assert "more than text" in raw.post("/runs/wait", json=body).json()["detail"]
    assert httpx.get(f"{live.url}/store/items", trust_env=False).json()["detail"]


def test_a_long_thread_is_told_in_pages_that_can_be_sent(client: Any) -> None:
    thread = client.threads.create(graph_id="echo")["thread_id"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"m{i}"} for i in range(400)]
    client.threads.update_state(thread, {"messages": messages})
    page = client.threads.get_history(thread, limit=1_000)
    assert 40 < len(page) < 60
    rest = client.threads.get_history(thread, limit=1_000, before=page[-1]["checkpoint"])
    assert rest[0]["checkpoint"] == page[-1]["parent_checkpoint"]
