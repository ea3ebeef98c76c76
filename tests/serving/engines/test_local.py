"""A local model in its own process: what one caller gets does not depend on the others, and bad requests are refused clearly."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from governance import choices
from governance.call import Call, CallError, Event
from serving.engines.local import LocalModel, Weights, weights_of
from serving.engines.supervised import LoadFailed
from tests.serving.tiny import TEMPLATE, make_adapter, make_model

pytest.importorskip("peft")

Ask = Callable[..., Any]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["grey", "blue"]}, "size": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "name": "measure", "description": "", "parameters": SCHEMA, "strict": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_model(folder / "model", template=TEMPLATE)
    make_adapter(folder / "warm", folder / "model")
    return folder


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def model(folder: Path, runner: asyncio.Runner) -> Iterator[LocalModel]:
    adapters = {"warm": str(folder / "warm")}
    made = LocalModel(
        Weights(str(folder / "model")), folder / "model.log", max_batch=4, max_queue=4, adapters=adapters, threads=1
    )
    runner.run(made.start())
    yield made
    runner.run(made.stop(0))


def call(prompt: str = "Once upon", **payload: Any) -> Call:
    given = {"input": [{"type": "message", "role": "user", "content": prompt}], "temperature": 0, "max_output_tokens": 12}
    return Call("tiny", "chat", {**given, **payload}, stream=True)


async def answer(model: LocalModel, asked: Call, adapter: str | None = None) -> dict[str, Any]:
    last: Event | None = None
    async for event in model.answer(asked, adapter):
        last = event
    assert last is not None
    return last.data["response"]


def text(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def test_callers_share_batches_and_get_what_they_get_alone(model: LocalModel, runner: asyncio.Runner) -> None:
    prompts = ["Once upon", "The mason laid one stone after", "How", "The answer is", "Nobody knew, but", "day", "the river"]

    async def alone() -> list[dict[str, Any]]:
        return [await answer(model, call(prompt, raw=True, max_output_tokens=5 + at)) for at, prompt in enumerate(prompts)]

    async def together() -> list[dict[str, Any]]:
        asked = (answer(model, call(prompt, raw=True, max_output_tokens=5 + at)) for at, prompt in enumerate(prompts))
        return await asyncio.gather(*asked)

    single, batched = runner.run(alone()), runner.run(together())
    assert list(map(text, single)) == list(map(text, batched))
    assert [each["usage"]["output_tokens"] for each in batched] == [5 + at for at in range(len(prompts))]
    assert {each["incomplete_details"]["reason"] for each in batched} == {"max_output_tokens"}


def test_choices_are_distinct_and_the_same_again(model: LocalModel, runner: asyncio.Runner) -> None:
    asked: dict[str, Any] = {"temperature": 1, "seed": 5, "max_output_tokens": 8, "raw": True}
    first, again = (runner.run(answer(model, call(**asked, n=4))) for _ in range(2))
    said = [text(dict(each)) for each in choices.parts(first)]
    assert said == [text(dict(each)) for each in choices.parts(again)]
    assert len(set(said)) == 4
    single = [runner.run(answer(model, call(**{**asked, "seed": seed}))) for seed in (5, 6, 7, 8)]
    assert said == [text(each) for each in single]  # the first is what the seed gives alone
    assert first["usage"]["input_tokens"] == single[0]["usage"]["input_tokens"]  # the prompt counts once
    assert first["usage"]["output_tokens"] == sum(each["usage"]["output_tokens"] for each in single)
    with pytest.raises(CallError, match="9 answers are asked for; this model writes or keeps waiting 8") as caught:
        runner.run(answer(model, call(n=9)))
    assert caught.value.status == 400
    assert runner.run(answer(model, call(n=2)))["status"] == "incomplete"  # nothing of what was refused is left


def test_prompts_together_give_what_each_gives_alone(model: LocalModel, runner: asyncio.Runner) -> None:
    asked: dict[str, Any] = {"temperature": 1, "seed": 5, "max_output_tokens": 8, "raw": True}
    prompts = [{"type": "message", "role": "user", "content": words} for words in ("Once upon a time", "Nobody")]
    got = runner.run(answer(model, call(**asked, n=4, input=prompts)))
    alone = [runner.run(answer(model, call(**asked, n=2, input=[prompt]))) for prompt in prompts]
    assert [text(dict(each)) for each in choices.parts(got)] == [text(dict(each)) for one in alone for each in choices.parts(one)]
    assert got["usage"] == {
        **got["usage"],
        **{name: sum(each["usage"][name] for each in alone) for name in ("input_tokens", "output_tokens", "total_tokens")},
    }


def test_usage_counts_the_tokens_of_the_template(model: LocalModel, runner: asyncio.Runner) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.process.path)
    ids = tokenizer("<s>user: Once upon<s>assistant:", add_special_tokens=False).input_ids
    usage = runner.run(answer(model, call()))["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (len(ids), 12)


def test_a_seed_repeats_an_answer_in_any_company(model: LocalModel, runner: asyncio.Runner) -> None:
    async def many() -> list[dict[str, Any]]:
        return await asyncio.gather(*(answer(model, call(seed=seed, temperature=1.2)) for seed in (5, 6, 5)))

    first, other, again = map(text, runner.run(many()))
    assert first == again == text(runner.run(answer(model, call(seed=5, temperature=1.2))))
    assert first != other


def test_a_stop_string_ends_the_answer_before_it(model: LocalModel, runner: asyncio.Runner) -> None:
    whole = text(runner.run(answer(model, call())))
    stop = whole[4:9]
    response = runner.run(answer(model, call(stop=[stop])))
    assert text(response) == whole[: whole.index(stop)]
    assert response["status"] == "completed"


def test_log_probabilities_come_with_the_text(model: LocalModel, runner: asyncio.Runner) -> None:
    include = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = runner.run(answer(model, call(**include)))["output"][0]["content"][0]
    assert len(part["logprobs"]) == 12
    assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 2 for each in part["logprobs"])
    assert all(each["top_logprobs"][0]["logprob"] == each["logprob"] for each in part["logprobs"])


def test_an_answer_follows_a_json_schema(model: LocalModel, runner: asyncio.Runner) -> None:
    pytest.importorskip("llguidance", reason="comes with the extra `local`")
    form = {"format": {"type": "json_schema", "name": "stone", "schema": SCHEMA}}

    async def some() -> list[dict[str, Any]]:
        asked = (call(text=form, temperature=1.0, seed=seed, max_output_tokens=100) for seed in range(3))
        return await asyncio.gather(*(answer(model, each) for each in asked))

    for response in runner.run(some()):
        found = json.loads(text(response))
        assert found["colour"] in ("grey", "blue")
        assert 0 <= found["size"] <= 9
        assert response["status"] == "completed"


def test_a_tool_that_must_be_called_is_called(model: LocalModel, runner: asyncio.Runner) -> None:
    pytest.importorskip("llguidance", reason="comes with the extra `local`")
    response = runner.run(answer(model, call(tools=[TOOL], tool_choice="required", max_output_tokens=100)))
    assert [item["type"] for item in response["output"]] == ["function_call"]
    assert response["output"][0]["name"] == "measure"
    assert set(json.loads(response["output"][0]["arguments"])) == {"colour", "size"}


def test_adapters_are_chosen_by_name_and_come_and_go_under_traffic(
    model: LocalModel, folder: Path, runner: asyncio.Runner
) -> None:
    make_adapter(folder / "cold", folder / "model", seed=2)

    async def traffic() -> None:
        base, warm = text(await answer(model, call())), text(await answer(model, call(), "warm"))
        assert base != warm
        both = [answer(model, call(max_output_tokens=40)), answer(model, call(max_output_tokens=40), "warm")]
        running = asyncio.gather(*both)
        await model.load_adapter("cold.1", str(folder / "cold"))
        cold = text(await answer(model, call(), "cold.1"))
        assert cold not in (base, warm)
        given = list(map(text, await running))
        assert given[0].startswith(base)
        assert given[1].startswith(warm)
        await model.unload_adapter("cold.1")
        assert (text(await answer(model, call())), text(await answer(model, call(), "warm"))) == (base, warm)
        with pytest.raises(CallError, match=r"no adapter 'cold.1'; loaded are: warm") as refused:
            await answer(model, call(), "cold.1")
        assert refused.value.status == 400
        for path in (folder, folder / "nowhere"):
            with pytest.raises(CallError, match="holds no adapter"):
                await model.load_adapter("x", str(path))

    runner.run(traffic())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (call("day " * 900), "prompt and answer together may have 512"),
        (call("day " * 900, raw=True), "prompt and answer together may have 512"),
        (call(text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "strange"}}}), "JSON schema|llguidance"),
        (call(tools=[TOOL], tool_choice={"type": "function", "name": "other"}), "'other'"),
        (call(input=[{"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]), "text only"),
    ],
)
def test_what_cannot_be_answered_is_refused_clearly(model: LocalModel, runner: asyncio.Runner, asked: Call, says: str) -> None:
    with pytest.raises(CallError, match=says) as refused:
        runner.run(answer(model, asked))
    assert refused.value.status == 400
    assert text(runner.run(answer(model, call())))


def test_more_than_the_queue_holds_is_refused_at_once_and_a_client_that_goes_frees_its_place(
    model: LocalModel, runner: asyncio.Runner
) -> None:
    async def flood() -> None:
        streams: list[AsyncIterator[Event]] = [model.answer(call(max_output_tokens=240, raw=True)) for _ in range(8)]
        waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
        while model.process.open_calls < 8:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with pytest.raises(CallError) as refused:
            await answer(model, call())
        assert refused.value.status == 429
        assert refused.value.retry_after
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        assert text(await answer(model, call()))

    runner.run(flood())


def test_a_process_that_is_killed_comes_back_with_its_adapters(model: LocalModel, runner: asyncio.Runner) -> None:
    async def kill() -> None:
        before = text(await answer(model, call(), "warm"))
        stream = model.answer(call(max_output_tokens=240, raw=True))
        await anext(stream)
        assert model.process.pid
        os.kill(model.process.pid, signal.SIGKILL)
        with pytest.raises(CallError, match="ended in the middle") as broken:
            async for _ in stream:
                pass
        assert broken.value.status == 503
        assert text(await answer(model, call(), "warm")) == before
        assert model.state[0] == "READY"

    runner.run(kill())


def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    async def load() -> None:
        model = LocalModel(Weights(str(tmp_path)), tmp_path / "log")
        with pytest.raises(LoadFailed, match="cannot be loaded"):
            await model.start()
        assert model.state[0] == "FAILED"
        await model.stop(0)

    asyncio.run(load())


def test_weights_are_found_in_registered_models(tmp_path: Path) -> None:
    assert weights_of(tmp_path) is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "components" / "tokenizer").mkdir(parents=True)
    assert weights_of(tmp_path) == Weights(str(tmp_path / "model"), str(tmp_path / "components" / "tokenizer"))
    lora = tmp_path / "artifacts" / "lora"
    lora.mkdir(parents=True)
    (lora / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/base"}))
    assert weights_of(tmp_path) == Weights("/models/base", None, str(lora))
