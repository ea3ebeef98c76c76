"""Registers the tiny models and the service principal. Doing it again changes nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.call import CallError
from governance.grants import Grants
from governance.oauth import OAuth
from retrieval.rows.tables import SourceTables
from serving.engines import skops
from serving.registry import Models, Registry
from serving.tracking.authors import LOCAL, MADE_BY

if TYPE_CHECKING:
    from sqlalchemy import Engine

CHAT, EMBED, TABULAR = "main.default.tiny_chat", "main.default.tiny_embed", "main.default.tiny_tabular"
TABLE = "main.default.docs"
CLIENT, SECRET = "sp", "secret"
_HERE = Path(__file__).parent


def prepare(
    home: Path,
    engine: Engine,
    oauth: OAuth,
    grants: Grants,
    *,
    secret: str = SECRET,
    registry: Models | None = None,
    tracking_uri: str | None = None,
) -> dict[str, Any]:
    """Register what is missing in a state folder; gives what is there then. Blocking, some seconds the first time.

    `registry` and `tracking_uri` are where models are, by default in the state folder. The service principal may make endpoints
    of these models: it holds CAN_MANAGE on `endpoint:*` and EXECUTE on them.
    """
    makers: dict[str, Callable[[str], Any]] = {CHAT: _chat, EMBED: _embed, TABULAR: _tabular}
    registry = registry or Registry(home)
    missing = {name: make for name, make in makers.items() if not _known(registry, name)}
    if missing:
        _register(home, missing, tracking_uri or f"sqlite:///{home / 'mlflow.db'}")
    oauth.create_secret(CLIENT, secret)
    grants.grant(f"service_principal:{CLIENT}", "endpoint:*", "CAN_MANAGE")
    for name in makers:
        grants.grant(f"service_principal:{CLIENT}", f"model:{name}", "EXECUTE")
    file = home / "conformance" / "docs.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"id": str(n), "text": f"row {n}"}) + "\n" for n in range(1, 21)))
    rows = SourceTables(engine).add(TABLE, str(file))
    models = [{"name": name, "version": "1", "task": registry.find(name, "1").task, "new": name in missing} for name in makers]
    return {"models": models, "table": TABLE, "rows": rows, "client_id": CLIENT, "client_secret": secret}


def _known(registry: Models, name: str) -> bool:
    try:
        registry.find(name, "1")
    except CallError:
        return False
    return True


def _register(home: Path, makers: dict[str, Callable[[str], Any]], uri: str) -> None:
    import mlflow

    from serving.tracking import child as mlflow_child

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    before = mlflow.get_tracking_uri()
    # MLflow tells of its doings by warnings and on standard error; none of it is about these models
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        own = uri.startswith("sqlite:")
        if own:
            mlflow_child.prepare(uri)
        mlflow.set_tracking_uri(uri)
        try:
            client = mlflow.MlflowClient()
            found = client.get_experiment_by_name("conformance")
            location = (home / "mlartifacts" / "conformance").as_uri() if own else None
            number = found.experiment_id if found else client.create_experiment("conformance", location)
            mlflow.set_experiment(experiment_id=number)
            for name, make in makers.items():
                make(name)
                client.set_registered_model_tag(name, MADE_BY, LOCAL)
                client.set_model_version_tag(name, "1", MADE_BY, LOCAL)
        finally:
            mlflow.set_tracking_uri(before)


def _requirements(*packages: str) -> list[str]:
    return [f"{package}=={version(package)}" for package in packages]


def _chat(name: str) -> None:
    _from_code(name, "chat.py", "llm/v1/chat")


def _embed(name: str) -> None:
    _from_code(name, "embed.py", "llm/v1/embeddings")


def _from_code(name: str, file: str, task: str) -> None:
    from mlflow import pyfunc

    pyfunc.log_model(
        name=name.rpartition(".")[2],
        python_model=str(_HERE / file),
        metadata={"task": task},
        pip_requirements=_requirements("mlflow"),
        registered_model_name=name,
    )


def _tabular(name: str) -> None:
    import pandas as pd
    from mlflow import sklearn
    from mlflow.models import infer_signature
    from sklearn.linear_model import LinearRegression

    skops.import_lean()
    rows = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0, 1.0, 4.0, 3.0], "c": [3.0, 5.0, 1.0, 2.0]})
    model = LinearRegression().fit(rows, rows["a"] + 2 * rows["b"] - rows["c"])
    sklearn.log_model(
        model,
        name=name.rpartition(".")[2],
        signature=infer_signature(rows, model.predict(rows)),
        pip_requirements=_requirements("mlflow", "scikit-learn", "pandas"),
        registered_model_name=name,
    )
