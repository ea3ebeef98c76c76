"""Classical models in an agent's graph, served for real: a MiniLM router and a scikit-learn verifier, through the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.live import ROOT, environment, serving, wait_until
from tests.programs import Programs

AGENT = """
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph
from agents import AgentState, emit_delta
from agents.graphs import rag, router as routing

def say(text):
    async def node(state: AgentState):
        emit_delta(text)
        return {"messages": [AIMessage(text)], "mode": "canned"}
    graph = StateGraph(AgentState)
    graph.add_node("say", node)
    graph.add_edge(START, "say")
    graph.add_edge("say", END)
    return graph.compile()

def build(model, retriever, *, tools=(), checkpointer=None, router=None, reader=None, embed=None, verify=None):
    documents = rag.build(model, retriever, reader=reader, embed=embed, verify=verify)
    agents = {"documents": documents, "billing": say("Billing answers."), "sales": say("Sales answers.")}
    return routing.build(model, retriever, checkpointer=checkpointer, router=router, agents=agents, fallback="documents")
"""

VERIFIER = """
import joblib
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

def shares(claim, evidence):
    said = {word.strip(".,;:()[]").lower() for word in claim.split()}
    return [len(said & {word.strip(".,;:()[]").lower() for word in evidence.split()}) / max(1, len(said))]

class Verifier(PythonModel):
    def load_context(self, context):
        self.model = joblib.load(context.artifacts["model"])

    def predict(self, context, model_input, params=None):
        rows = [shares(c, e) for c, e in zip(model_input["claim"], model_input["evidence"])]
        probabilities = self.model.predict_proba(rows)
        return [dict(zip(self.model.classes_.tolist(), each.tolist())) for each in probabilities]

set_model(Verifier())
"""

MAKE = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import joblib, mlflow, pandas as pd
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, Schema
from sklearn.linear_model import LogisticRegression
from finetune.publish import register
from finetune.tasks.classify import fit_cached
from retrieval.embed import Encoder
from tests.live import models

home, folder = Path(sys.argv[1]), Path(sys.argv[2])
mlflow.set_tracking_uri(f"sqlite:///{home / 'mlflow.db'}")
mlflow.set_experiment(experiment_id=mlflow.MlflowClient().create_experiment("t", (home / "mlartifacts" / "t").as_uri()))
encoder = Encoder.load(models())
classifier = fit_cached(folder / "labels.jsonl", encoder.embed, home / "models", encoder=encoder.fingerprint)
with mlflow.start_run():
    register(classifier, "main.default.desk_router")
labels = ["supported" if i > 12 else "unsupported" for i in range(21)]
model = LogisticRegression(C=100).fit([[i / 20] for i in range(21)], labels)
joblib.dump(model, folder / "model.joblib")
columns = Schema([ColSpec("string", "claim"), ColSpec("string", "evidence")])
artifacts = {"model": str(folder / "model.joblib")}
mlflow.pyfunc.log_model(name="verifier", python_model=str(folder / "verifier.py"), artifacts=artifacts,
                        pip_requirements=["mlflow", "scikit-learn", "joblib"], signature=ModelSignature(columns),
                        registered_model_name="main.default.verifier")
mlflow.MlflowClient().set_registered_model_alias("main.default.verifier", "champion", 1)
"""

SAYINGS = {
    "billing": """I was charged twice
my invoice is wrong
refund my payment
the card was declined
why is my bill so high
send me the receipt
cancel the charge on my card
the invoice shows the wrong amount""",
    "sales": """I want to buy ten licences
what does the enterprise plan cost
can I get a quote
do you give discounts
talk to sales about a purchase
price for a hundred seats
we would like to order
is there a trial before buying""",
    "documents": """how long is the bridge
when was the bridge built
what is the bridge made of
who designed the bridge
which river does the bridge cross
how many lanes has the bridge
how high are the towers
when is the bridge closed""",
}


@pytest.mark.timeout(300)
def test_a_served_router_and_a_served_verifier_decide_within_a_graph(tmp_path: Path, programs: Programs) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bridge.md").write_text("# Bridge\n\nThe bridge is 314 metres long. It was built in 1931 of steel.\n")
    (tmp_path / "desk.py").write_text(AGENT)
    (tmp_path / "verifier.py").write_text(VERIFIER)
    rows = [{"text": text, "label": label} for label, texts in SAYINGS.items() for text in texts.splitlines()]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    home = tmp_path / "home"
    home.mkdir()
    made = programs.run(MAKE, str(home), str(tmp_path), folder=ROOT, environment=environment(home))
    assert made.returncode == 0, made.stderr
    models = {"triage": "desk_router", "checker": "verifier"}
    endpoints = [
        {"name": name, "config": {"served_entities": [{"entity_name": f"main.default.{model}", "entity_version": "champion"}]}}
        for name, model in models.items()
    ]
    agent = {"builder": f"{tmp_path}/desk.py:build", "router": {"endpoint": "triage", "threshold": 0.95}}
    agent["verifier"] = {"endpoint": "checker"}
    endpoints.append({"name": "desk", "config": {"served_entities": [{"agent": agent}]}})
    with serving(home, tmp_path / "docs", SMALTI_ENDPOINTS=json.dumps(endpoints)) as live, live.client() as client:

        def state(name: str) -> str:
            return client.get(f"/api/2.0/serving-endpoints/{name}").json()["state"]["ready"]

        for name in models:
            wait_until(lambda name=name: state(name) == "READY", 120)
        ann = client.post("/api/2.0/smalti/keys", json={"name": "ann"}).json()["key"]
        client.put("/api/2.0/permissions/serving-endpoints/desk", json={"access_control_list": [
            {"user_name": "ann", "permission_level": "CAN_QUERY"}]}).raise_for_status()  # fmt: skip

        def ask(question: str) -> dict:
            headers = {"Authorization": f"Bearer {ann}"}
            answer = client.post("/v1/responses", json={"model": "desk", "input": question}, headers=headers)
            assert answer.status_code == 200, answer.text
            return answer.json()

        billing = ask("There is a second charge on my card")["custom_outputs"]["route"]
        assert billing["label"] == "billing"
        assert billing["confidence"] > 0.95
        unsure = ask("hello")["custom_outputs"]["route"]
        assert unsure["label"] == "documents", "the fallback, below the threshold"
        assert 0.3 < unsure["confidence"] < 0.95
        found = ask("How long is the bridge?")
        assert found["custom_outputs"]["route"]["label"] == "documents"
        assert found["custom_outputs"]["supported"] is True
        assert "314 metres" in found["output"][0]["content"][0]["text"]
        rows = client.get("/api/2.0/smalti/journal", params={"limit": 50}).json()
        calls = {row["endpoint_name"]: row for row in rows["rows"]}
        assert {"triage", "checker", "desk"} <= calls.keys(), "each is a call through the gateway"
        assert calls["triage"]["requester"] == "ann", "the agent's grant brought them along"
        assert calls["checker"]["execution_duration_ms"] >= 0
