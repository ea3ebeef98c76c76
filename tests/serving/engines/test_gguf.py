"""A GGUF model as llama.cpp serves it: the text that transformers gives, streamed, held to schemas, counted; and its failures."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from governance.call import Call, CallError, Event
from serving.engines.gguf import GgufModel
from serving.engines.supervised import LoadFailed
from tests.serving.tiny import make_model

pytestmark = pytest.mark.anyio
pytest.importorskip("xllamacpp", reason="the extra `gguf` is not installed")
pytest.importorskip("torch")

TEMPLATE = (
    "{%- if tools %}<s>system\nCall a function by its name and arguments in <tool_call></tool_call>:\n"
    "{%- for tool in tools %}{{ tool | tojson }}{% endfor %}\n{% endif -%}"
    "{%- for m in messages %}<s>{{ m.role }}\n{{ m.content or '' }}"
    "{%- for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}\n'
    "{%- endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["grey", "blue"]}, "size": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "measure", "description": "", "parameters": SCHEMA, "strict": False}

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.serving.tiny_gguf import convert

    folder = tmp_path_factory.mktemp("gguf")
    make_model(folder / "model", template=TEMPLATE)
    convert(folder / "model", folder / "tiny.gguf", template=TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Ask:
    """The greedy text of transformers after a text, and the length of both in tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="float32")

    def give(prompt: str, count: int, *, chat: bool = False) -> str:
        if chat:
            message = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat).input_ids
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count)
        return tokenizer.decode(made[0][ids.shape[1] :], skip_special_tokens=True)

    return give


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def model(folder: Path, runner: asyncio.Runner) -> Iterator[GgufModel]:
    made = GgufModel(str(folder / "tiny.gguf"), folder / "model.log", context=512, threads=1)
    runner.run(made.start())
    yield made
    runner.run(made.stop(0))


def call(prompt: str = "Once upon a time", **payload: Any) -> Call:
    given = {"input": [{"type": "message", "role": "user", "content": prompt}], "temperature": 0, "max_output_tokens": 24}
    return Call("tiny", "chat", {**given, **payload}, stream=True)


async def answer(model: GgufModel, asked: Call) -> dict[str, Any]:
    last: Event | None = None
    async for event in model.engine(asked):
        last = event
    assert last is not None
    return last.data["response"]


@pytest.fixture
def ask(model: GgufModel, runner: asyncio.Runner) -> Ask:
    return lambda *prompt, **payload: runner.run(answer(model, call(*prompt, **payload)))


def text(response: dict[str, Any]) -> str:
    return response["output"][0]["content"][0]["text"]


def test_its_greedy_text_is_that_of_transformers(ask: Ask, expected: Ask) -> None:
    bare = ask("How long is the bridge?", raw=True)
    assert text(bare) == expected("How long is the bridge?", 24)
    assert text(ask("How long is the bridge?")) == expected("How long is the bridge?", 24, chat=True)
    assert bare["usage"]["output_tokens"] == 24
    assert bare["incomplete_details"] == {"reason": "max_output_tokens"}


def test_callers_share_a_batch_and_get_what_they_get_alone(model: GgufModel, runner: asyncio.Runner, ask: Ask) -> None:
    prompts = [f"The answer is {number}" for number in range(8)]

    async def together() -> list[dict[str, Any]]:
        return await asyncio.gather(*(answer(model, call(prompt)) for prompt in prompts))

    assert [text(given) for given in runner.run(together())] == [text(ask(prompt)) for prompt in prompts]


def test_sampling_repeats_with_a_seed(ask: Ask) -> None:
    def sampled(seed: int) -> str:
        return text(ask(temperature=1.5, top_k=0, seed=seed))

    assert sampled(1) == sampled(1) != sampled(2)


def test_a_stop_string_ends_the_answer_before_it(ask: Ask) -> None:
    whole = text(ask(raw=True))
    stop = whole[8:11]
    stopped = ask(raw=True, stop=[stop])
    assert text(stopped) == whole[: whole.index(stop)]
    assert stopped["status"] == "completed"


def test_a_schema_is_kept(ask: Ask) -> None:
    form = {"format": {"type": "json_schema", "name": "stone", "schema": SCHEMA, "strict": True}}
    found = json.loads(text(ask(text=form, max_output_tokens=200)))
    assert found["colour"] in ("grey", "blue")
    assert 0 <= found["size"] <= 9


def _teach(folder: Path, said: str) -> None:
    """Let the model in the folder say this where it is offered the tool, wherever exactly the prompt ends."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tool = {"type": "function", "function": {key: TOOL[key] for key in ("name", "description", "parameters")}}
    message = [{"role": "user", "content": "Once upon a time"}]
    prompt = tokenizer.apply_chat_template(message, tools=[tool], add_generation_prompt=True, tokenize=False)
    prompt = tokenizer(prompt, add_special_tokens=False).input_ids
    answer = [*tokenizer(said, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    for _ in range(200):
        shift = int(torch.randint(-12, 13, ()))
        ids = torch.tensor([[5] * max(shift, 0) + prompt[max(-shift, 0) :] + answer])
        loss = model(input_ids=ids, labels=torch.where(torch.arange(ids.shape[1]) < ids.shape[1] - len(answer), -100, ids)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


async def test_tools_are_called(folder: Path, tmp_path: Path) -> None:
    from tests.serving.tiny_gguf import convert

    shutil.copytree(folder / "model", tmp_path / "model")
    _teach(tmp_path / "model", '<tool_call>\n{"name": "measure", "arguments": {"colour": "blue", "size": 3}}\n</tool_call>')
    file = convert(tmp_path / "model", tmp_path / "taught.gguf", template=TEMPLATE)
    model = GgufModel(str(file), tmp_path / "log", context=512, threads=1)
    await model.start()
    try:
        for choice in ("auto", "required"):
            response = await answer(model, call(tools=[TOOL], tool_choice=choice, max_output_tokens=200))
            (item,) = response["output"]
            assert (item["type"], item["name"]) == ("function_call", "measure")
            assert json.loads(item["arguments"]) == {"colour": "blue", "size": 3}
            assert response["status"] == "completed"
    finally:
        await model.stop(0)


def test_log_probabilities_come_with_the_text(ask: Ask) -> None:
    response = ask(include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=4)
    told = response["output"][0]["content"][0]["logprobs"]
    assert len(told) >= 3  # a character may be made of several tokens
    assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 2 for each in told)
    bare = ask(include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=4, raw=True)
    assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 2 for each in bare["output"][0]["content"][0]["logprobs"])
    assert bare["output"][0]["content"][0]["logprobs"]
    none = ask(include=["message.output_text.logprobs"], max_output_tokens=4)
    assert all(each["top_logprobs"] == [] for each in none["output"][0]["content"][0]["logprobs"])


def test_a_prompt_that_is_too_long_is_refused_with_the_reason(ask: Ask) -> None:
    with pytest.raises(CallError, match="context size") as refused:
        ask("word " * 2000)
    assert refused.value.status == 400


async def test_after_a_crash_the_next_call_is_answered(folder: Path) -> None:
    model = GgufModel(str(folder / "tiny.gguf"), folder / "crash.log", context=512, threads=1)
    await model.start()
    try:
        assert model.memory > 0
        assert model.pid is not None
        os.kill(model.pid, signal.SIGKILL)
        assert text(await answer(model, call()))
        assert model.starts == 2
    finally:
        await model.stop(0)


async def test_what_cannot_be_loaded_says_why(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def why(path: Path, **options: Any) -> str:
        model = GgufModel(str(path), tmp_path / "log", **options)
        with pytest.raises(LoadFailed) as failed:
            await model.start()
        assert model.state[0] == "FAILED"
        return str(failed.value)

    assert "cannot be read: No such file" in await why(tmp_path / "none.gguf")
    assert "is no GGUF file" in await why(folder / "model" / "config.json")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((folder / "tiny.gguf").read_bytes()[:100_000])
    assert "does not load this model" in await why(cut)
    assert "There is no llama-server" in await why(folder / "tiny.gguf", binary=tmp_path / "none")
    monkeypatch.setattr("serving.engines.gguf.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "pip install 'smalti[gguf]'" in await why(folder / "tiny.gguf")


async def test_a_llama_server_of_its_own_is_run_with_the_same_flags(folder: Path, tmp_path: Path) -> None:
    """The one in the package stands in for it: they read the same flags."""
    binary = tmp_path / "llama-server"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m serving.engines.gguf_server "$@"\n')
    binary.chmod(0o755)
    shutil.copy(folder / "tiny.gguf", tmp_path / "m.gguf")
    model = GgufModel(str(tmp_path / "m.gguf"), tmp_path / "log", binary=binary, context=512, threads=1)
    await model.start()
    try:
        assert text(await answer(model, call()))
        assert str(binary) in model.build_logs()
    finally:
        await model.stop(0)
