from __future__ import annotations

import json
from typing import Any

import pytest

from governance.call import Call, CallError
from serving.engines.answer import Answer
from serving.protocols import completions


def test_a_prompt_is_one_user_message() -> None:
    request = completions.decode({"model": "m", "prompt": ["hi"], "max_tokens": 3, "stop": ["x"]})
    assert request.payload["input"] == [{"type": "message", "role": "user", "content": "hi"}]
    assert (request.payload["max_output_tokens"], request.payload["stop"]) == (3, ["x"])


@pytest.mark.parametrize(("field", "value"), [("best_of", 2), ("echo", True), ("n", 33)])
def test_what_one_answer_cannot_give_is_refused(field: str, value: Any) -> None:
    assert completions.decode({"model": "m", "prompt": "hi", "best_of": 1, "echo": False}).payload["raw"]
    assert completions.decode({"model": "m", "prompt": "hi", "best_of": 2, "n": 2}).payload["n"] == 2  # all are given
    with pytest.raises(CallError) as caught:
        completions.decode({"model": "m", "prompt": "hi", field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("prompt", [None, [], [1, 2], ["a", 2], {}, ["a"] * 33])
def test_prompts_that_are_no_texts_or_too_many(prompt: Any) -> None:
    with pytest.raises(CallError, match="prompt") as caught:
        completions.decode({"model": "m", "prompt": prompt})
    assert caught.value.param == "prompt"


def test_several_prompts_have_their_choices_each() -> None:
    request = completions.decode({"model": "m", "prompt": ["a", "b"], "n": 2})
    assert ([each["content"] for each in request.payload["input"]], request.payload["n"]) == (["a", "b"], 4)
    with pytest.raises(CallError, match="11 prompts of 3 choices each"):
        completions.decode({"model": "m", "prompt": ["a"] * 11, "n": 3})


@pytest.mark.parametrize("databricks", [True, False])
def test_stream_and_body(databricks: bool) -> None:
    call = Call("m", "chat", {})
    answer, encoder = Answer(call), completions.Encoder(call, include_usage=True, databricks=databricks)
    events = [
        *answer.start(),
        *answer.write("a"),
        *answer.write("b"),
        *answer.finish(usage={"input_tokens": 1, "output_tokens": 2}),
    ]
    lines = b"".join(encoder.event(event) for event in events).decode().strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "ab"
    assert chunks[-1]["usage"]["total_tokens"] == 3
    assert bool(chunks[-1]["choices"]) == databricks
    body = json.loads(encoder.body(events[-1].data["response"]))
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"], body["object"]) == ("ab", "stop", "text_completion")
