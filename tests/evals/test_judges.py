from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from evals.cache import Cache
from evals.data import Prediction, Row, RowResult
from evals.judged import judge
from evals.judges import JudgeError, judging, trace_of

PASSAGES = ({"id": "1", "source": "capitals.md", "text": "Paris is the capital of France."},)
RESULTS = [
    RowResult(
        Row("1", "What is the capital of France?", ("Paris",), expected_answer="Paris", expected_tools=("search",)),
        Prediction("Paris.", passages=PASSAGES, tools=("search",), latency_ms=5),
    ),
    RowResult(Row("2", "Who may call?"), Prediction("Call ann@example.com.", passages=PASSAGES)),
]


class Model(BaseHTTPRequestHandler):
    """An OpenAI-compatible chat model that says yes to what speaks of Paris, with a reason, and fails where it is told to."""

    asked: list[Any]
    broken = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, self.headers["authorization"], body))
        if self.broken:
            self.send_error(400)
            return
        prompt = json.dumps(body["messages"])
        said = {"result": "yes" if "Paris" in prompt else "no", "rationale": "as the passage says"}
        message = {"role": "assistant", "content": json.dumps(said)}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def model(**more: Any) -> Iterator[tuple[dict[str, str], list[Any]]]:
    asked: list[Any] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Model,), {"asked": asked, **more}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}/v1/"
    try:
        yield {"SMALTI_JUDGE_MODEL": "judge-1", "SMALTI_JUDGE_BASE_URL": base, "SMALTI_JUDGE_API_KEY": "sk-judge"}, asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.anyio
async def test_mlflows_judges_ask_the_configured_endpoint_and_never_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.genai.judges import make_judge
    from mlflow.genai.scorers import Correctness, RelevanceToQuery, RetrievalGroundedness

    monkeypatch.setenv("OPENAI_API_KEY", "somebody else's")
    own = make_judge(name="polite", instructions="Is {{ outputs }} a polite answer to {{ inputs }}?", model="openai:/judge-2")
    scorers = [Correctness(), RelevanceToQuery(), RetrievalGroundedness(), own]
    cache = Cache(tmp_path, {"scorers": "judged"})
    with model() as (environment, asked):
        for _ in range(2):
            with judging(environment) as name:
                assert name == "judge-1"
                first, second = await judge(RESULTS, scorers, cache=cache)
        count = len(asked)
        assert count == 7, [result.judged for result in (first, second)]
        with judging({**environment, "SMALTI_JUDGE_MODEL": "judge-3"}):
            await judge(RESULTS, scorers, cache=cache)
        assert {body["model"] for *_, body in asked[count:]} == {"judge-3"}, "another model's answers are its own"
    cache.close()
    assert {(path, key) for path, key, _ in asked} == {("/v1/chat/completions", "Bearer sk-judge")}
    assert {body["model"] for *_, body in asked[:count]} == {"judge-1", "judge-2"}
    assert {name: said["value"] for name, said in first.judged.items()} == {
        "correctness": "yes", "relevance_to_query": "yes", "retrieval_groundedness": "yes", "polite": "yes"
    }  # fmt: skip
    assert first.judged["correctness"]["source"] == "LLM_JUDGE"
    assert first.judged["correctness"]["rationale"] == "as the passage says"
    assert second.judged["relevance_to_query"]["value"] == "no"
    assert "correctness" not in second.judged
    import os

    assert os.environ["OPENAI_API_KEY"] == "somebody else's"
    assert "OPENAI_API_BASE" not in os.environ


@pytest.mark.anyio
async def test_a_judge_that_fails_is_an_error_of_its_row_and_is_asked_again(tmp_path: Path) -> None:
    from mlflow.genai.scorers import RelevanceToQuery

    cache = Cache(tmp_path, {"scorers": "judged"})
    with model(broken=True) as (environment, asked), judging(environment):
        first, _ = await judge(RESULTS[:1] * 2, [RelevanceToQuery()], cache=cache, timeout=60)
    assert asked
    assert first.judged["relevance_to_query"]["error"]
    with model() as (environment, _), judging(environment):
        (first,) = await judge(RESULTS[:1], [RelevanceToQuery()], cache=cache)
    assert first.judged["relevance_to_query"]["value"] == "yes"
    cache.close()


def test_half_a_configuration_is_told() -> None:
    with pytest.raises(JudgeError, match="SMALTI_JUDGE_BASE_URL is not set"), judging({"SMALTI_JUDGE_MODEL": "x"}):
        pass
    with judging({}) as name:
        assert name is None


@pytest.mark.anyio
async def test_built_in_code_scorers_work_unchanged() -> None:
    from mlflow.genai import scorer
    from mlflow.genai.scorers import PIIDetection, RegexMatch, ResponseLength, ToolCallCorrectness

    @scorer
    def cited(trace) -> int:
        """Counts what the retriever found, as a scorer written for MLflow does."""
        return sum(len(span.outputs) for span in trace.search_spans(span_type="RETRIEVER"))

    scorers = [
        RegexMatch(pattern=r"^Paris"),
        ResponseLength(max_length=10),
        PIIDetection(),
        ToolCallCorrectness(should_exact_match=True),
        cited,
    ]
    first, second = await judge(RESULTS, scorers)
    values = [{name: said.get("value") for name, said in result.judged.items()} for result in (first, second)]
    assert all(not said.get("error") for said in first.judged.values()), first.judged
    assert (values[0]["cited"], values[1]["cited"]) == (1, 1)
    assert str(values[0]["regex_match"]) != str(values[1]["regex_match"])
    assert str(values[0]["response_length"]) != str(values[1]["response_length"])
    assert str(values[0]["pii_detection"]) != str(values[1]["pii_detection"])
    assert str(values[0]["tool_call_correctness"]).lower() in ("yes", "true", "1.0", "1")


def test_a_trace_tells_what_was_asked_found_called_and_answered() -> None:
    trace = trace_of(RESULTS[0])
    assert [(span.name, span.span_type) for span in trace.data.spans] == [
        ("evaluate", "AGENT"), ("retrieve", "RETRIEVER"), ("search", "TOOL")
    ]  # fmt: skip
    assert trace.data.spans[0].outputs == "Paris."
    assert trace.data.spans[1].outputs[0]["metadata"] == {"doc_uri": "capitals.md"}
