"""Local models as a user declares them: in smalti.yaml, as the assistant's own model, and from the registry."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.service import serving as s
from openai import APIError, BadRequestError, NotFoundError, OpenAI
from typer.testing import CliRunner

from app import cli
from serving.cli import CommandError
from serving.declarations import LocalModel
from serving.settings import Settings, SettingsError
from tests.live import ROOT, Live, mlflow_store, serving, smalti, wait_until
from tests.programs import Programs
from tests.serving import vllm_double
from tests.serving.tiny import TEMPLATE, make_adapter, make_model

pytest.importorskip("peft")

REGISTER = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import mlflow, transformers
home, model, adapter = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
client = mlflow.MlflowClient()
mlflow.set_experiment(experiment_id=client.create_experiment("tests", (home / "mlartifacts" / "tests").as_uri()))
parts = {"model": transformers.AutoModelForCausalLM.from_pretrained(model),
         "tokenizer": transformers.AutoTokenizer.from_pretrained(model)}
mlflow.transformers.log_model(transformers_model=parts, name="tiny", task="llm/v1/chat", pip_requirements=["transformers"],
                              metadata={"task": "llm/v1/chat"}, registered_model_name="main.default.tiny")
class Adapter(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input
mlflow.pyfunc.log_model(name="tuned", python_model=Adapter(), artifacts={"adapter": adapter}, pip_requirements=["mlflow"],
                        metadata={"task": "llm/v1/chat"}, registered_model_name="main.default.tuned")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "model", template=TEMPLATE)
    make_model(folder / "plain")
    make_adapter(folder / "warm", folder / "model")
    make_adapter(folder / "cold", folder / "model", seed=2)
    return folder


@pytest.fixture(scope="module")
def live(folder: Path, programs: Programs) -> Iterator[Live]:
    double = folder / "vllm"  # found by `-m vllm.entrypoints.openai.api_server`, as in vLLM's own environment
    (double / "vllm" / "entrypoints" / "openai").mkdir(parents=True)
    (double / "vllm" / "entrypoints" / "openai" / "api_server.py").write_text(Path(vllm_double.__file__).read_text())
    starter = double / "python"
    starter.write_text(f'#!/bin/sh\nPYTHONPATH={double} exec {sys.executable} "$@"\n')
    starter.chmod(0o755)
    declared = [
        {"path": str(folder / "model"), "adapters": {"warm": str(folder / "warm")}, "threads": 1, "max_batch": 4},
        {"path": "org/big", "engine": "vllm", "python": str(starter), "adapters": {}},
        {"path": str(folder / "nowhere")},
    ]
    endpoints = [
        {"name": name, "config": {"served_entities": [{"local_model": local}]}}
        for name, local in zip(("tiny", "big", "lost"), declared, strict=True)
    ]
    docs = folder / "docs"
    docs.mkdir()
    (docs / "bridge.md").write_text("# Bridge\n\nThe bridge is 314 metres long.\n")
    home = folder / "home"
    mlflow_store(home)
    made = programs.run(REGISTER, str(home), str(folder / "model"), str(folder / "warm"), folder=ROOT, environment=os.environ)
    assert made.returncode == 0, made.stderr
    settings = {"SMALTI_ENDPOINTS": json.dumps(endpoints), "SMALTI_CHAT_MODEL": f"hf:{folder / 'plain'}"}
    with serving(home, docs, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[OpenAI]:
    http = httpx.Client(trust_env=False)
    with OpenAI(base_url=f"{live.url}/v1", api_key=live.key, http_client=http, timeout=100) as client:
        yield client


def said(client: OpenAI, model: str, prompt: str = "Once upon") -> str:
    messages: Any = [{"role": "user", "content": prompt}]
    given = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
    return given.choices[0].message.content or ""


def test_every_face_gives_the_same_text_streamed_and_not(client: OpenAI) -> None:
    text = said(client, "tiny")
    messages: Any = [{"role": "user", "content": "Once upon"}]
    options: Any = {"max_tokens": 12, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 12
    response = client.responses.create(model="tiny", input="Once upon", max_output_tokens=12, temperature=0)
    assert response.output_text == text
    prompt = "<s>user: Once upon<s>assistant:"
    bare = client.completions.create(model="tiny", prompt=prompt.removeprefix("<s>"), max_tokens=12, temperature=0, logprobs=1)
    assert bare.choices[0].text == text
    assert bare.choices[0].logprobs
    assert len(bare.choices[0].logprobs.tokens or ()) == 12
    streamed = client.completions.create(
        model="tiny", prompt=prompt.removeprefix("<s>"), max_tokens=12, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == text


def test_log_probabilities_in_chat(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Once upon"}]
    asked: Any = {"model": "tiny", "messages": messages, "max_tokens": 4, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    told = client.chat.completions.create(**asked).choices[0].logprobs
    assert told
    assert [len(each.top_logprobs) for each in told.content or ()] == [3, 3, 3, 3]
    streamed = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices]
    tokens = [each.token for logprobs in streamed if logprobs for each in logprobs.content or ()]
    assert tokens == [each.token for each in told.content or ()]


def test_the_assistant_answers_with_the_local_model(live: Live, client: OpenAI) -> None:
    with live.client() as http:
        body = http.post("/v1/responses", json={"model": "assistant", "input": "How long is the bridge?"}).json()
        assert body["status"] in ("completed", "incomplete")
        assert body["custom_outputs"]["mode"] == "generative"
    assert said(client, "chat")


def test_adapters_are_endpoints_that_come_and_go(live: Live, folder: Path, client: OpenAI) -> None:
    base, warm = said(client, "tiny"), said(client, "tiny:warm")
    assert base != warm
    at = "/api/2.0/serving-endpoints/tiny/adapters"
    with live.client() as http:
        made = http.post(at, json={"lora_name": "cold", "lora_path": str(folder / "cold")})
        assert made.json() == {"lora_name": "cold", "endpoint": "tiny:cold"}, made.text
        assert said(client, "tiny:cold") not in (base, warm)
        assert [each["lora_name"] for each in http.get(at).json()["adapters"]] == ["cold", "warm"]
        assert http.post(at, json={"lora_name": "x", "lora_path": str(folder)}).json()["error_code"] == "BAD_REQUEST"
        assert http.post(at, json={"lora_name": "a/b", "lora_path": str(folder)}).status_code == 400
        assert http.delete(f"{at}/cold").status_code == 200
        assert http.delete(f"{at}/cold").status_code == 404
        assert http.get(at.replace("tiny", "assistant")).status_code == 404
    with pytest.raises(NotFoundError):
        said(client, "tiny:cold")
    assert said(client, "tiny") == base
    key = smalti("keys", "create", "someone", "--json", home=live.home)
    assert key.returncode == 0, key.stderr
    stranger = {"Authorization": f"Bearer {json.loads(key.stdout)['key']}"}
    assert httpx.get(live.url + at, headers=stranger, trust_env=False).status_code == 403


def test_a_prompt_that_is_too_long_and_tools_without_a_template_for_them_are_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="may have 512"):
        said(client, "tiny", "day " * 900)
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    messages: Any = [{"role": "user", "content": "Once"}]
    with pytest.raises(BadRequestError, match="takes no tools"):
        client.chat.completions.create(model="chat", messages=messages, tools=[tool])


def test_a_model_that_is_not_there_says_so_and_the_rest_serves(live: Live, client: OpenAI) -> None:
    def lost() -> dict[str, Any]:
        with live.client() as http:
            return http.get("/api/2.0/serving-endpoints/lost").json()

    wait_until(lambda: lost()["config"]["served_entities"][0]["state"]["deployment"] == "DEPLOYMENT_FAILED", 60)
    assert lost()["state"]["ready"] == "NOT_READY"
    assert "cannot be loaded" in lost()["config"]["served_entities"][0]["state"]["deployment_state_message"]
    assert said(client, "tiny")


def test_vllm_serves_beside_it_and_its_metrics_are_passed_on(live: Live, folder: Path, client: OpenAI) -> None:
    assert said(client, "big", "hello").strip() == "base chat hello"
    assert client.completions.create(model="big", prompt="hello").choices[0].text.strip() == "base prompt hello"
    with live.client() as http:
        made = http.post("/api/2.0/serving-endpoints/big/adapters", json={"lora_name": "poet", "lora_path": str(folder)})
        assert made.status_code == 200, made.text
        assert said(client, "big:poet", "hello").strip() == "poet chat hello"
        wait_until(lambda: 'vllm:generation_tokens_total{endpoint="big"}' in http.get("/metrics").text)
        assert "something_else" not in http.get("/metrics").text


def test_log_probabilities_of_a_bare_prompt_come_from_a_model_in_a_process_of_its_own(client: OpenAI) -> None:
    asked: Any = {"model": "big", "prompt": "hello"}
    told = client.completions.create(**asked, logprobs=2).choices[0].logprobs
    assert told is not None
    assert (told.tokens, told.token_logprobs, told.text_offset) == (["base ", "prompt ", "hello "], [-0.5] * 3, [0, 5, 12])
    assert (told.top_logprobs or [])[2] == {"hello ": -0.5, "other": -1.5}
    own = client.completions.create(**asked, logprobs=0).choices[0].logprobs
    assert own is not None
    assert (own.token_logprobs, own.top_logprobs) == ([-0.5] * 3, [{}] * 3)
    streamed = [chunk.choices[0].logprobs for chunk in client.completions.create(**asked, logprobs=1, stream=True)]
    assert [token for each in streamed if each for token in each.tokens or ()] == told.tokens
    assert client.completions.create(**asked).choices[0].logprobs is None


def test_a_vllm_that_dies_in_the_middle_of_a_stream_is_told_of_and_comes_back(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="big", messages=[{"role": "user", "content": "one two DIE three"}], stream=True)
    heard: list[str] = []
    with pytest.raises(APIError, match=r"broke the connection|in the middle"):
        heard.extend(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert said(client, "big", "hello").strip() == "base chat hello"  # waits for it


@pytest.mark.parametrize("model", ["tiny", "tuned"])
def test_registered_language_models_are_served_by_the_same_engine(live: Live, client: OpenAI, model: str) -> None:
    workspace = WorkspaceClient(config=Config(host=live.url, token=live.key))
    entity = s.ServedEntityInput(name="a", entity_name=f"main.default.{model}", entity_version="1")
    config = s.EndpointCoreConfigInput(name="", served_entities=[entity])
    wait = datetime.timedelta(seconds=90)
    made = workspace.serving_endpoints.create_and_wait(f"registered-{model}", config=config, timeout=wait)
    assert made.task == "llm/v1/chat"
    assert said(client, f"registered-{model}") == said(client, {"tiny": "tiny", "tuned": "tiny:warm"}[model])
    workspace.serving_endpoints.delete(f"registered-{model}")


@pytest.mark.parametrize(
    ("model", "environment", "engine"),
    [
        ("hf:/models/x", {}, "transformers"),
        ("vllm:org/model", {}, "vllm"),
        ("gguf:models/x.gguf", {}, "gguf"),
        ("vllm:org/model", {"VLLM_BASE_URL": "http://gpu:8000/v1"}, None),
        ("vllm:http://gpu:8000/v1", {}, None),
        ("ollama:m", {}, None),
    ],
)
def test_which_models_run_here(monkeypatch: pytest.MonkeyPatch, model: str, environment: dict[str, str], engine: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = Settings(chat_model=model).local_chat()
    assert (found.engine if found else None) == engine


def test_a_declaration_that_cannot_be_used_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "smalti.yaml"
    file.write_text(
        "endpoints:\n- name: a\n  config:\n    served_entities:\n    - local_model:\n        path: x\n        max_batch: 0\n"
    )
    with pytest.raises(SettingsError, match=r"smalti.yaml:7: .*max_batch"):
        Settings.load(file)
    with pytest.raises(ValueError, match="gguf takes no adapters"):
        LocalModel(path="x.gguf", engine="gguf", adapters={})
    with pytest.raises(ValueError, match="name it in `binary`"):
        LocalModel(path="x.gguf", engine="gguf", args=["--mlock"])


def test_engines_are_installed_listed_and_removed(tmp_path: Path) -> None:
    about = "Metadata-Version: 2.1\nName: vllm\nVersion: 9.9\n"
    with zipfile.ZipFile(tmp_path / "vllm-9.9-py3-none-any.whl", "w") as wheel:
        wheel.writestr("vllm/__init__.py", "")
        wheel.writestr("vllm-9.9.dist-info/METADATA", about)
        wheel.writestr("vllm-9.9.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("vllm-9.9.dist-info/RECORD", "")
    home = tmp_path / "home"

    def told(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["--home", str(home), *arguments])
        if isinstance(result.exception, CommandError):
            return result.exception.code, str(result.exception)
        return result.exit_code, result.stdout

    offline = ["--pip=--no-index", f"--pip=--find-links={tmp_path}"]
    assert "No engines" in told("engines", "list")[1]
    code, message = told("engines", "install", "other")
    assert (code, "no engine 'other'" in message) == (2, True)
    assert told("engines", "install", "vllm", "--package", "vllm==1", *offline)[0] == 1
    assert not (home / "engines" / "vllm").exists()
    code, shown = told("engines", "install", "vllm", *offline, "--json")
    assert code == 0, shown
    made = json.loads(shown.splitlines()[-1])
    assert made["version"] == "9.9"
    assert subprocess.run([made["python"], "-c", "import vllm"], timeout=60).returncode == 0
    assert "9.9" in told("engines", "list")[1]
    code, message = told("engines", "install", "vllm", *offline)
    assert (code, "smalti engines remove vllm" in message) == (2, True)
    assert told("engines", "remove", "vllm")[0] == 0
    assert not (home / "engines" / "vllm").exists()
    assert told("engines", "remove", "vllm")[0] == 2
