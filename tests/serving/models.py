"""MLflow models made on the spot, as code files, for tests of serving."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

CHAT = """
from mlflow.models import set_model
from mlflow.pyfunc.model import ChatModel
from mlflow.types.llm import ChatChoice, ChatCompletionChunk, ChatCompletionResponse, ChatMessage
from mlflow.types.llm import ChatChoiceDelta, ChatChunkChoice

class Echo(ChatModel):
    def predict(self, context, messages, params):
        forced = (params.custom_inputs or {}).get("tool_choice")
        text = f"{messages[-1].content}|{forced}"
        return ChatCompletionResponse(choices=[ChatChoice(index=0, message=ChatMessage(role="assistant", content=text))])

    def predict_stream(self, context, messages, params):
        for word in messages[-1].content.split():
            delta = ChatChoiceDelta(role="assistant", content=word + " ")
            yield ChatCompletionChunk(choices=[ChatChunkChoice(index=0, delta=delta)])

set_model(Echo())
"""

AGENT = """
from mlflow.models import set_model
from mlflow.pyfunc.model import ResponsesAgent
from mlflow.types.responses import ResponsesAgentResponse, ResponsesAgentStreamEvent

class Parrot(ResponsesAgent):
    def predict(self, request):
        text = f"you said {request.input[-1].content}"
        return ResponsesAgentResponse(output=[self.create_text_output_item(text, "m1")])

    def predict_stream(self, request):
        for word in ("you ", "said"):
            yield ResponsesAgentStreamEvent(**self.create_text_delta(delta=word, item_id="m1"))
        yield ResponsesAgentStreamEvent(type="response.output_item.done", item=self.create_text_output_item("you said", "m1"))

set_model(Parrot())
"""

CHATAGENT = """
from mlflow.models import set_model
from mlflow.pyfunc.model import ChatAgent
from mlflow.types.agent import ChatAgentChunk, ChatAgentMessage, ChatAgentResponse

class Talker(ChatAgent):
    def predict(self, messages, context=None, custom_inputs=None):
        return ChatAgentResponse(messages=[ChatAgentMessage(role="assistant", content=f"heard {messages[-1].content}", id="1")])

    def predict_stream(self, messages, context=None, custom_inputs=None):
        for word in ("heard ", "you"):
            yield ChatAgentChunk(delta=ChatAgentMessage(role="assistant", content=word, id="1"))

set_model(Talker())
"""

DYING = """
import os
import time
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

class Dying(PythonModel):
    def predict(self, context, model_input, params=None):
        if "die" in set(model_input.get("word", [])):
            os._exit(3)
        if "wait" in set(model_input.get("word", [])):
            time.sleep(3)
        return [str(os.getpid())] * len(model_input)

    def predict_stream(self, context, model_input, params=None):
        for part in ("write to an", "na@example", ".org"):
            yield {"part": part}
        if model_input["word"] == "die":
            os._exit(3)

set_model(Dying())
"""

REGISTER = """
import sys, warnings
from contextlib import suppress
from pathlib import Path
warnings.simplefilter("ignore")
from app import cli
with suppress(SystemExit):  # in this process: importing MLflow takes longer than all it does here
    cli(["conformance", "prepare", "--json"])
import mlflow
home = Path(sys.argv[1])
mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
client = mlflow.MlflowClient()
mlflow.set_experiment(experiment_id=client.create_experiment("tests", (home / "mlartifacts" / "tests").as_uri()))
for name in sys.argv[2:]:
    mlflow.pyfunc.log_model(name=name, python_model=str(home / f"{name}.py"), pip_requirements=["mlflow"],
                            registered_model_name=f"main.default.{name}")
client.set_registered_model_alias("main.default.dying", "champion", 1)
"""

SMALL = """
import os, signal, subprocess, time

def _load_pyfunc(path):
    how = os.environ.get("LOAD")
    if how and how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    if how == "raise":
        raise ValueError("the weights are of another shape")
    if how == "hang":
        time.sleep(600)
    if how == "eat":
        held = [bytearray(64 << 20) for _ in range(100) if not time.sleep(0.01)]
    return Model()

class Model:
    def predict(self, table):
        words = set(table["word"] if hasattr(table, "columns") else table)
        if "die" in words:
            os._exit(3)
        if "hang" in words:
            time.sleep(600)
        if "eat" in words:
            self.held = [bytearray(64 << 20) for _ in range(100) if not time.sleep(0.01)]
        if "raise" in words:
            raise KeyError("a word that is\\nnot known")
        if "wait" in words:
            time.sleep(0.3)
        if "child" in words:
            return [str(subprocess.Popen(["sleep", "600"]).pid)] * len(table)
        for word in words:
            if word.startswith("print"):
                print(word * 100, flush=True)
        return [str(os.getpid())] * len(table)
"""
SMALL_ABOUT = """
flavors:
  python_function:
    loader_module: small_model
    code: code
    data: data
signature:
  inputs: '[{"type": "string", "name": "word", "required": true}]'
metadata: {rowwise: true}
"""


def small(folder: Path) -> Path:
    """A model that is told by its rows, and by the environment variable `LOAD`, how to go wrong; it answers its process' id."""
    (folder / "code").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "code" / "small_model.py").write_text(SMALL)
    (folder / "MLmodel").write_text(SMALL_ABOUT)
    return folder


def registry(home: Path, model: Path) -> None:
    """What of MLflow's database names this folder as version 1 of `m.s.small`, alias `champion`."""
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE registered_models (name TEXT)")
        database.execute("INSERT INTO registered_models VALUES ('m.s.small')")
        columns = "name TEXT, version INT, source TEXT, storage_location TEXT, status TEXT, current_stage TEXT"
        database.execute(f"CREATE TABLE model_versions ({columns})")
        database.execute("CREATE TABLE registered_model_aliases (name TEXT, alias TEXT, version INT)")
        database.execute("INSERT INTO model_versions VALUES ('m.s.small', 1, ?, NULL, 'READY', 'None')", (str(model),))
        database.execute("INSERT INTO registered_model_aliases VALUES ('m.s.small', 'champion', 1)")
