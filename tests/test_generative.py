"""With a model configured answers are written, their citations checked, and a model's failure is one clear error."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any, ClassVar

import openai
import pytest

from tests.live import Live, serving, wait_until

FACTS = "# Observatory\n\nThe main telescope has a mirror of 3.6 metres. It was built in 1976 in La Silla.\n"


class Model(BaseHTTPRequestHandler):
    """An OpenAI-compatible model that says what it was told to say."""

    protocol_version = "HTTP/1.1"
    says: ClassVar[str] = ""
    fails: ClassVar[str] = ""
    asked: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.close_connection = True
        if self.fails == "500":
            self.send_error(500, "the model is ill")
            return
        if self.fails == "silence":
            time.sleep(3)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        pieces = [self.says[start : start + 4] for start in range(0, len(self.says), 4)]
        for number, piece in enumerate(pieces):
            if self.fails == "stops" and number > len(pieces) // 2:
                return
            self.send({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        self.send({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.send({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}})
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, body: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps({"id": "x", "object": "chat.completion.chunk", **body}).encode() + b"\n\n")
        self.wfile.flush()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    docs = tmp_path_factory.mktemp("docs")
    (docs / "observatory.md").write_text(FACTS)
    (docs / "canteen.md").write_text("# Canteen\n\nLunch is served from noon to two.\n")
    model = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    thread = threading.Thread(target=model.serve_forever, daemon=True)
    thread.start()
    settings = {
        "SMALTI_CHAT_MODEL": "tiny",
        "SMALTI_CHAT_BASE_URL": f"http://127.0.0.1:{model.server_address[1]}/v1",
        "SMALTI_CHAT_TIMEOUT": "1",
    }
    with serving(tmp_path_factory.mktemp("state") / "home", docs, **settings) as server:
        yield server
    model.shutdown()
    model.server_close()
    thread.join()


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    Model.fails, Model.says = "", "Well."
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0) as made:
        made.responses.create(model="chat", input="How are you?")  # a good answer closes the circuit breaker
        yield made


def row(live: Live, request_id: str) -> dict[str, Any]:
    from governance.journal import Journal
    from serving.state import open_database

    with Journal(open_database(f"sqlite:///{live.home / 'smalti.db'}"), live.home / "journal", interval=None) as kept:
        (found,) = kept.rows(request_id=request_id)
        kept._engine.dispose()
        return found


QUESTION = "How large is the mirror of the main telescope?"


def test_an_answer_is_written_and_its_unsupported_citations_are_removed(client: openai.OpenAI, live: Live) -> None:
    Model.says = "The mirror of the main telescope has 3.6 metres [1]. It is painted bright pink with flowers [1]. Ask me [9]."
    answer = client.responses.create(model="assistant", input=QUESTION)
    assert "3.6 metres [1]" in answer.output_text
    assert "[9]" not in answer.output_text
    assert "flowers [1]" not in answer.output_text
    assert [note.type for note in answer.output[0].content[0].annotations] == ["url_citation"]  # type: ignore[union-attr]
    assert answer.metadata is not None
    assert answer.metadata["mode"] == "generative"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 42
    assert "mirror of 3.6 metres" in json.dumps(Model.asked[-1])


def test_a_stream_holds_citations_back_until_they_are_checked(client: openai.OpenAI) -> None:
    Model.says = "It has 3.6 metres [1] and a hat made of cheese [2]."
    stream = client.chat.completions.create(model="assistant", messages=[{"role": "user", "content": QUESTION}], stream=True)
    said = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(said) > 3
    assert "3.6 metres [1]" in "".join(said)
    assert "[2]" not in "".join(said)


@pytest.mark.parametrize(("fails", "status"), [("500", 502), ("silence", 504)])
def test_a_model_that_fails_at_once_is_an_http_error(fails: str, status: int, client: openai.OpenAI, live: Live) -> None:
    Model.fails = fails
    with pytest.raises(openai.APIStatusError) as caught:
        client.responses.create(model="chat", input=QUESTION)
    assert caught.value.status_code == status
    assert "HTTP 500" in str(caught.value) or "did not answer" in str(caught.value)
    assert row(live, caught.value.response.headers["x-request-id"])["status_code"] == status


@pytest.mark.parametrize("fails", ["500", "silence", "stops"])
def test_an_agent_whose_model_fails_ends_its_stream_with_one_error(fails: str, client: openai.OpenAI, live: Live) -> None:
    Model.fails, Model.says = fails, "The mirror of the main telescope has 3.6 metres and weighs eleven tons."
    kinds = []
    try:
        with client.responses.create(model="assistant", input=QUESTION, stream=True) as stream:
            request_id = stream.response.headers["x-request-id"]
            kinds = [event.type for event in stream]
    except openai.APIStatusError as error:
        request_id = error.response.headers["x-request-id"]
    else:
        assert kinds[-1] == "response.failed"
        assert sum(kind in ("response.completed", "response.failed", "response.incomplete") for kind in kinds) == 1
    assert (row(live, request_id)["status_code"] or 0) >= 500


def test_the_models_call_is_governed_and_belongs_to_the_question(client: openai.OpenAI, live: Live) -> None:
    Model.says = "It has 3.6 metres [1]."
    answer = client.responses.with_raw_response.create(model="assistant", input=QUESTION)
    outer = answer.headers["x-request-id"]
    with live.client() as http:
        rows = http.get("/api/2.0/smalti/journal", params={"endpoint": "chat", "limit": 100}).json()["rows"]
    assert outer in {each["parent_request_id"] for each in rows}


def test_a_thread_can_be_used_after_its_run_failed(client: openai.OpenAI) -> None:
    Model.fails, Model.says = "stops", "The mirror has a very long story that is cut off in the middle of it all."
    with client.responses.create(model="assistant", input=QUESTION, conversation="c1", stream=True) as stream:
        assert [event.type for event in stream][-1] == "response.failed"
    Model.fails, Model.says = "", "It was built in 1976 [1]."
    again = client.responses.create(model="assistant", input="When was the main telescope built?", conversation="c1")
    assert "1976" in again.output_text
    roles = [message["role"] for message in Model.asked[-1]["messages"]]
    assert roles[-1] == "user"
    assert not [a for a, b in pairwise(roles) if a == b == "user"]


def test_a_client_that_hangs_up_is_recorded(client: openai.OpenAI, live: Live) -> None:
    Model.says = "word " * 2000
    with client.responses.create(model="assistant", input=QUESTION, stream=True) as stream:
        request_id = stream.response.headers["x-request-id"]
        next(iter(stream))
    wait_until(lambda: row(live, request_id)["status_code"] is not None)
    assert row(live, request_id)["status_code"] in (499, 200)
