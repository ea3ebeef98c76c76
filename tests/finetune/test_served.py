"""What was trained is an endpoint behind the gateway: the docs' story, an index's encoder and reranker, a reader, and
adapters beside the model they were trained on. One server for all of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from app import _disliked, cli
from finetune.hot_load import hot_load
from finetune.recipe import load_recipe
from finetune.runs import TrainingRun
from serving.settings import Settings
from tests.finetune.tiny import bert, llama, pairs, questions, ranked, trained
from tests.live import ROOT, Live, environment, serving, wait_until

pytestmark = pytest.mark.timeout(400)

SNIPPETS = re.compile(r"^```(py|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOX = "The fox sees the dog. "
ASKED = ("The fox", "The dog sees", "fox. The")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    bert(folder / "base")
    every = pairs(folder / "every.jsonl", 80, 1).read_text().splitlines(keepends=True)
    (folder / "embed.jsonl").write_text("".join(every[:64]))
    (folder / "embed_eval.jsonl").write_text("".join(every[64:]))
    for name, make, rows in (("rerank", ranked, 60), ("reader", questions, 160)):
        make(folder / f"{name}.jsonl", rows, 1)
        make(folder / f"{name}_eval.jsonl", rows // 4, 2)
    return folder


@pytest.fixture(scope="module")
def run(made: Path) -> dict[str, TrainingRun]:
    """A run of each kind, all in one home."""
    found = {}
    for task, more in {
        "embed": {"training_duration": "16ep"},
        "rerank": {"training_duration": "10ep", "candidates": 2, "method": "lora", "lora": {"rank": 8}, "learning_rate": 2e-2},
        "reader": {"training_duration": "10ep", "stride": 8},
    }.items():
        data = {"train": str(made / f"{task}.jsonl"), "eval": str(made / f"{task}_eval.jsonl")}
        given = {"task": task, "name": task, "base_model": str(made / "base"), "threads": 1, "batch_size": 16, "max_length": 32}
        given |= {"learning_rate": 5e-3, "layer_decay": 1.0, "register_to": f"main.default.{task}", "data": data}
        found[task] = trained(load_recipe(given | more), made / "home")
    overrides = [f"base_model={made / 'base'}", "threads=1"]  # in the place of MiniLM, which takes longer to write than to train
    tweets = load_recipe(ROOT / "finetune" / "recipes" / "tweet_sentiment.yaml", overrides)
    found["tweets"] = trained(tweets, made / "home")
    llama(made / "llama", template=True)
    (made / "tale.txt").write_text(FOX * 30)
    given = {"task": "cpt", "name": "tales", "base_model": str(made / "llama"), "data": {"train": str(made / "tale.txt")}}
    tales = load_recipe(
        {**given, "context_length": 64, "batch_size": 4, "threads": 1, "learning_rate": 1e-2, "training_duration": "5ba"}
    )
    found["tales"] = trained(tales, made / "home")
    return found


@pytest.fixture(scope="module")
def live(made: Path, run: dict[str, TrainingRun]) -> Iterator[Live]:
    fences = SNIPPETS.findall((ROOT / "docs" / "finetuning.md").read_text())
    (made / "agent.py").write_text(next(text for _, text in fences if "def build" in text))
    settings = next(text for kind, text in fences if kind == "yaml")
    (made / "smalti.yaml").write_text(settings)
    (made / "docs").mkdir()
    (made / "docs" / "bridge.md").write_text(
        "# Bridge\n\n## Length\n\nThe bridge is 314 metres long, measured from bank to bank.\n"
    )
    writer = {"local_model": {"path": str(made / "llama"), "adapters": {}, "threads": 1}}
    more = [{"name": "writer", "config": {"served_entities": [writer]}}]
    for name in ("embed", "rerank", "reader"):
        entity = {"entity_name": f"main.default.{name}", "entity_version": "champion"}
        more.append({"name": name, "config": {"served_entities": [entity]}})
    text = (
        settings.replace("./agent.py", str(made / "agent.py")).rstrip()
        + "\n"
        + "".join(f"  - {json.dumps(each)}\n" for each in more)
    )
    (made / "smalti.yaml").write_text(text)
    with serving(made / "home", made / "docs", config=made / "smalti.yaml") as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx.Client]:
    with live.client() as opened:

        def up() -> bool:
            return all(
                opened.get(f"/api/2.0/serving-endpoints/{name}").json()["state"]["ready"] == "READY"
                for name in ("sentiment", "embed", "rerank", "reader", "writer")
            )

        wait_until(up, 120)
        yield opened


def loaded(run: TrainingRun, name: str) -> tuple[Any, Any]:
    """The champion and its version."""
    mlflow.set_tracking_uri(run.spec["tracking_uri"])
    version = mlflow.MlflowClient().get_model_version_by_alias(name, "champion")
    return mlflow.pyfunc.load_model(f"models:/{name}@champion"), version


def test_an_encoder_finds_answers_better_than_the_one_it_began_as(run: dict[str, TrainingRun]) -> None:
    result = run["embed"].state()["result"]
    assert result["metrics"]["ndcg_at_10"] > result["baseline"]["ndcg_at_10"] + 0.1
    model, version = loaded(run["embed"], "main.default.embed")
    vectors = np.array([row["embedding"] for row in model.predict({"input": ["was it good day", "day good"]})["data"]])
    assert vectors.shape == (2, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(version.tags["data_sha256"]) == len(version.tags["base_sha256"]) == 64
    assert "base model" in version.description
    assert model.metadata.signature.inputs.input_names() == ["input"]


def test_a_reranker_of_adapters_puts_the_right_text_first(run: dict[str, TrainingRun]) -> None:
    result = run["rerank"].state()["result"]
    assert result["metrics"]["hit_at_1"] > result["baseline"]["hit_at_1"] + 0.2
    model, _ = loaded(run["rerank"], "main.default.rerank")
    rows = pd.DataFrame({"query": ["was it day 1 7"] * 2, "document": ["it is the good day 7", "it is the bad film 7"]})
    good, bad = model.predict(rows)
    assert 1 >= good > bad >= 0


def test_a_reader_copies_the_answer_or_says_that_there_is_none(run: dict[str, TrainingRun]) -> None:
    result = run["reader"].state()["result"]
    assert result["metrics"]["f1"] > result["baseline"]["f1"] + 0.3
    model, _ = loaded(run["reader"], "main.default.reader")
    long = " ".join(["we saw the film"] * 20)
    contexts = ["we saw a great film 2", "we saw a film 2", f"{long} awful {long}"]
    frame = model.predict(pd.DataFrame({"question": ["was it so"] * 3, "context": contexts}))
    assert frame["answer"].tolist() == ["great", "", "awful"]
    assert contexts[2][frame["start"][2] : frame["end"][2]] == "awful"


def test_the_docs_ask_an_endpoint_of_the_champion(live: Live, client: httpx.Client) -> None:
    fences = SNIPPETS.findall((ROOT / "docs" / "finetuning.md").read_text())
    code = next(text for _, text in fences if "create_and_wait" in text)
    code = code.replace("http://127.0.0.1:8000", live.url).replace('"sentiment"', '"asked"')  # `sentiment` is declared here
    env = environment(live.home, SMALTI_KEY=live.key) | {"PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert re.search(r"'label': '(negative|neutral|positive)'", done.stdout), done.stdout
    refused = client.post("/serving-endpoints/sentiment/invocations", json={"dataframe_split": {"columns": [], "data": []}})
    assert refused.status_code == 400
    assert "text" in refused.text


def test_the_supervisor_of_the_docs_asks_the_classical_model(live: Live, client: httpx.Client) -> None:
    said = {"model": "helpdesk", "input": "How long is the bridge?"}
    told = client.post("/v1/responses", json=said)
    assert told.status_code == 200, told.text
    answer = told.json()
    text = answer["output"][0]["content"][0]["text"]
    assert "314" in text or "A person will look" in text  # the tiny model's moods are anyone's guess
    journal = CliRunner().invoke(cli, ["--home", str(live.home), "journal", "query", "--json"])
    rows = [json.loads(line) for line in journal.stdout.splitlines()]
    inner = [row for row in rows if row["parent_request_id"] == answer["id"].removeprefix("resp_")]
    assert "sentiment" in [row["endpoint_name"] for row in inner]


def test_an_index_uses_the_trained_encoder_and_reranker(client: httpx.Client) -> None:
    name, root = "main.default.films", "/api/2.0/vector-search"
    client.post(f"{root}/endpoints", json={"name": "shop", "endpoint_type": "STANDARD"}).raise_for_status()
    embedding = {"name": "text", "embedding_model_endpoint_name": "embed"}
    spec = {"embedding_source_columns": [embedding], "schema_json": json.dumps({"id": "string", "text": "string"})}
    body = {"name": name, "endpoint_name": "shop", "primary_key": "id", "index_type": "DIRECT_ACCESS"}
    client.post(f"{root}/indexes", json=body | {"direct_access_index_spec": spec}).raise_for_status()
    texts = ["it is so good day", "it is so bad day", "it is so great film"]
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    filled = client.post(f"{root}/indexes/{name}/upsert-data", json={"inputs_json": json.dumps(rows)})
    assert filled.status_code == 200, filled.text
    asked = {"columns": ["id"], "query_text": "was it day bad", "num_results": 3}
    found = client.post(f"{root}/indexes/{name}/query", json=asked).raise_for_status().json()
    assert found["result"]["data_array"][0][0] == "1"
    vectors = client.post("/v1/embeddings", json={"model": "embed", "input": "was it day bad"}).raise_for_status().json()
    assert len(vectors["data"][0]["embedding"]) == 32
    better = {"model": "rerank", "parameters": {"columns_to_rerank": ["text"]}}
    found = client.post(f"{root}/indexes/{name}/query", json=asked | {"reranker": better}).raise_for_status().json()
    order = [row[0] for row in found["result"]["data_array"]]
    assert order[-1] == "1", "the reranker likes what is good"
    assert "warnings" not in found.get("debug_info", {})


def test_a_reader_is_asked_by_row(client: httpx.Client) -> None:
    row = {"question": "was it so", "context": "we saw a great film 2"}
    answer = client.post("/serving-endpoints/reader/invocations", json={"dataframe_records": [row]}).raise_for_status().json()
    assert answer["predictions"][0] | {"score": 0} == {"answer": "great", "score": 0, "start": 9, "end": 14}


def by_peft(base: Path, adapter: Path | None, *, merged: bool) -> list[str]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name it has given up
        whole: Any = AutoModelForCausalLM.from_pretrained(base)
        if adapter is not None:
            whole = PeftModel.from_pretrained(whole, adapter)
            whole = whole.merge_and_unload() if merged else whole
        whole.eval()
    found = []
    for prompt in ASKED:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        out = whole.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


def test_an_adapter_is_loaded_beside_the_model_that_serves(
    live: Live, client: httpx.Client, run: dict[str, TrainingRun], made: Path
) -> None:
    name = hot_load(run["tales"].folder / "model", "tales", live.url, endpoint="writer", key=live.key)
    assert name == "writer:tales"
    base, adapter = made / "llama", run["tales"].folder / "model"

    def said(model: str, prompt: str) -> str:
        body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0}
        return client.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["text"]

    # The engine says what PEFT does with the two, beside each other and made one.
    found = [said(name, prompt) for prompt in ASKED]
    assert found == by_peft(base, adapter, merged=False) == by_peft(base, adapter, merged=True)
    assert [said("writer", prompt) for prompt in ASKED] == by_peft(base, None, merged=False) != found


def test_an_indexs_own_pairs_are_what_was_asked_and_its_headings(live: Live, client: httpx.Client, made: Path) -> None:
    from finetune.index_pairs import asked, pairs_of, scanned, split

    client.post("/v1/responses", json={"model": "assistant", "input": "How many metres is the bridge long?"}).raise_for_status()
    own = [str(made / "own.jsonl"), "--eval", str(made / "own_eval.jsonl")]
    done = CliRunner().invoke(cli, ["--home", str(live.home), "finetune", "pairs", "docs", *own])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for file in ("own.jsonl", "own_eval.jsonl") for line in (made / file).read_text().splitlines()]
    found = {row["query"]: row["positive"] for row in rows}
    assert set(found) >= {"How many metres is the bridge long?", "Bridge Length"}
    assert all("314" in text for text in found.values())
    assert _disliked(Settings(home=live.home), live.home) == set()
    citation = {"index": "i", "passage_id": "p"}
    call = {"databricks_request_id": "r", "status_code": 200, "request": '{"input": "why?"}'}
    call |= {"response": json.dumps({"custom_outputs": {"citations": [citation]}})}
    assert list(asked([call], "i", set())) == [("why?", "p")]
    assert list(asked([call], "i", {"r"})) == list(asked([call], "other", set())) == []
    field = {"key": "id", "value": {"string_value": "p"}}
    [passage] = scanned([{"fields": [field, {"key": "text", "value": {"string_value": "because"}}]}])
    assert pairs_of([passage], [("why?", "p"), ("Why? ", "p")]) == [{"query": "why?", "positive": "because"}]
    parts = split([{"query": f"q{i}", "positive": "x"} for i in range(200)], 0.2)
    assert 20 < len(parts[1]) < 60
