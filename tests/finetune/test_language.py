"""Language models: texts that share a sequence see nothing of each other, only answers are learnt, and runs are published."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from finetune.data import DataError
from finetune.packing import IGNORED, Tokens, pack, tensors
from finetune.recipe import RecipeError, load_recipe
from finetune.schema import LanguageRecipe
from finetune.tasks.language import LanguageTask, load_tokenizer
from finetune.texts import read
from finetune.validate import validate
from tests.finetune.tiny import llama, trained


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama") / "base", template=True)


def recipe(folder: Path, base: Path, *overrides: str, **keys: Any) -> LanguageRecipe:
    given = {"task": "cpt", "name": "tales", "base_model": str(base), "data": {"train": str(folder)}, "context_length": 64}
    loaded = load_recipe(given | {"batch_size": 4, "learning_rate": 1e-2, "threads": 1, "lora": {"rank": 4}} | keys, overrides)
    assert isinstance(loaded, LanguageRecipe)
    return loaded


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_packed_texts_have_the_logits_they_have_alone(base: Path, tmp_path: Path) -> None:
    task = LanguageTask(recipe(tmp_path, base, method="full"), base, load_tokenizer(base), [], [])
    draw = torch.Generator().manual_seed(1)
    sizes = (20, 1, 30, 2, 11, 40, 7)
    texts = [Tokens(ids := torch.randint(3, 90, (size,), generator=draw).tolist(), ids) for size in sizes]
    packs = pack(texts, 64)
    assert len(packs) == 2
    given = tensors(packs, 0)
    given.pop("labels")
    model = task.model.eval()
    with torch.no_grad():
        together = model(**given, attention_mask=None, use_cache=False).logits
        for row, each in enumerate(packs):
            at = 0
            for text in each:
                alone = model(input_ids=torch.tensor([list(text.ids)]), use_cache=False).logits[0]
                assert (together[row, at : at + len(text.ids)] - alone).abs().max() < 1e-5
                at += len(text.ids)
        joined = model(**given, attention_mask=torch.ones_like(given["input_ids"]), use_cache=False).logits
    assert (joined - together).abs().max() > 1e-3  # what a mask of ones would do: the test can tell


def test_micro_batches_sum_to_the_whole_batch(base: Path, tmp_path: Path) -> None:
    texts = [Tokens(ids := [5 + i] * (5 + 9 * i), [IGNORED] * i + ids[i:]) for i in range(5)]
    task = LanguageTask(recipe(tmp_path, base, method="full"), base, load_tokenizer(base), texts, [])
    everything = list(range(len(task.lengths)))
    parts = sum(float(task.loss([i]).detach()) for i in everything)
    assert parts == pytest.approx(float(task.loss(everything).detach()), rel=1e-5)
    assert task.targets(everything) == sum(text.targets for text in texts) == sum(5 + 9 * i - max(i, 1) for i in range(5))


def test_only_answers_are_learnt(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    [row], _ = read("sft-instruct", write(tmp_path / "i", {"prompt": "1+1=", "response": "2"}), tokenizer, 64)
    assert tokenizer.decode([label for label in row.labels if label != IGNORED]) == "2</s>"
    turns = [("user", "hi"), ("assistant", "yo"), ("user", "so?"), ("assistant", "bye")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
    [row], _ = read("sft-chat", write(tmp_path / "c", chat), tokenizer, 64)
    assert tokenizer.decode(row.ids) == "<s>U:hi\nA:yo</s>U:so?\nA:bye</s>"
    assert tokenizer.decode([label for label in row.labels if label != IGNORED]) == "yo</s>bye</s>"


@pytest.mark.parametrize(
    ("task", "row", "code"),
    [
        ("sft-chat", {"messages": [{"role": "human", "content": "hi"}]}, "unknown_role"),
        ("sft-chat", {"messages": [{"role": "user", "content": "hi"}]}, "all_masked"),
        ("sft-chat", {"messages": [{"role": "assistant", "content": " "}]}, "empty_content"),
        ("sft-chat", {"prompt": "hi"}, "missing_key"),
        ("sft-instruct", {"prompt": "hi"}, "missing_key"),
        ("sft-instruct", {"prompt": "hi", "response": ""}, "empty_response"),
        ("sft-instruct", {"prompt": "a" * 80, "response": "b"}, "all_masked"),
        ("cpt", [1], "not_object"),
    ],
)
def test_what_cannot_be_learnt_is_named_by_line(base: Path, tmp_path: Path, task: str, row: Any, code: str) -> None:
    file = write(tmp_path / "rows.jsonl", row)
    with pytest.raises(DataError) as caught:
        read(task, file, load_tokenizer(base), 64)
    assert [(problem.code, problem.line) for problem in caught.value.problems if problem.severity == "error"] == [(code, 1)]


def test_a_template_that_never_ends_an_answer_is_refused(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    file = write(tmp_path / "rows.jsonl", {"messages": [{"role": "assistant", "content": "hi"}]})
    with pytest.raises(DataError, match="never to stop"):
        read("sft-chat", file, tokenizer, 64)


def test_a_chat_template_that_is_not_there_is_told(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"chat_template: .*none.jinja cannot be read"):
        load_tokenizer(base, tmp_path / "none.jinja")


def test_a_context_that_is_too_long_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="at most 128 tokens, not 256"):
        LanguageTask(recipe(tmp_path, base, context_length=256), base, load_tokenizer(base), [], [])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("method", ["lora", "full", "dora"])
def test_a_run_learns_its_texts_and_is_published(base: Path, tmp_path: Path, method: str) -> None:
    tale = "The fox sees the dog. The dog sees the fox. "
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(tale * 12)
    (tmp_path / "held.txt").write_text(tale * 2)
    keys = {"data": {"train": str(tmp_path / "texts"), "eval": str(tmp_path / "held.txt")}, "register_to": "main.default.tales"}
    asked = recipe(tmp_path, base, method=method, training_duration="40ep", eval_prompts=("The fox",), sample_tokens=8, **keys)
    run = trained(asked, tmp_path)
    result = run.state()["result"]
    assert result["metrics"]["loss"] < 0.95 * result["baseline"]["loss"]
    assert result["samples"][0].startswith("The fox")
    assert any(event["event"] == "sample" for event in run.events())
    if method != "lora":
        files = {file.name for file in (run.folder / "model").iterdir()}
        assert {"config.json", "model.safetensors"} <= files
        assert "adapter_config.json" not in files, "vLLM has no DoRA, so it is merged"
        return
    config = json.loads((run.folder / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(run.spec["tracking_uri"])
        model = mlflow.pyfunc.load_model("models:/main.default.tales@champion")
        answer = model.predict({"messages": [{"role": "user", "content": "The fox"}], "max_tokens": 8})
    assert isinstance((answer[0] if isinstance(answer, list) else answer)["choices"][0]["message"]["content"], str)
    version = mlflow.MlflowClient().get_model_version_by_alias("main.default.tales", "champion")
    assert version.tags["vllm_arguments"] == "--enable-lora"


def test_files_that_call_columns_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "alpaca.json"
    rows = [{"instruction": f"what is {i}", "output": f"it is {i}", "source": "x"} for i in range(3)]
    file.write_text(json.dumps([*rows, rows[0] | {"instruction": "What  is 0"}]))
    asked = {"train": str(file), "columns": {"prompt": "instruction", "response": "output"}}
    given = {"task": "sft-instruct", "name": "x", "base_model": str(llama(tmp_path / "base"))}
    report = validate(load_recipe({**given, "data": asked}))
    assert [(each.code, each.column) for each in report.problems] == [("unknown_key", "source"), ("duplicate_row", None)]
    assert validate(load_recipe({**given, "data": asked | {"ignore_columns": ["source"]}})).as_dict()["counts"] == {
        "duplicate_row": 1
    }
    without = validate(load_recipe({**given, "data": {"train": str(file)}}))
    assert "data.columns.prompt=NAME" in without.problems[0].fix


CALLS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[{{ c.function.name }} {{ c.function.arguments.city }}]{% endfor %}{{ eos_token }}{% else %}U:{{ m.content }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


def test_calls_of_tools_are_learnt_and_what_has_no_weight_is_not(tmp_path: Path) -> None:
    import pandas as pd

    base, template, file = llama(tmp_path / "base"), tmp_path / "calls.jinja", tmp_path / "rows.parquet"
    template.write_text(CALLS)
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    chat = [
        {"role": "user", "content": "how is it"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "wet", "weight": 0},
        {"role": "user", "content": "so"},
        {"role": "assistant", "content": "stay"},
    ]
    pd.DataFrame({"messages": [chat]}).to_parquet(file)
    given = {"task": "sft-chat", "name": "x", "base_model": str(base), "chat_template": str(template)}
    recipe = load_recipe({**given, "data": {"train": str(file)}})
    assert validate(recipe).problems == ()
    tokenizer = load_tokenizer(base, template)
    [row], _ = read("sft-chat", file, tokenizer, 512)
    assert tokenizer.decode([label for label in row.labels if label != IGNORED]) == "[weather Oslo]</s>stay</s>"
