"""A real server in a process of its own, as a user starts it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx
from filelock import FileLock

KEY = "an-administrators-key-for-tests"
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Live:
    """A running server: its address, an administrator's key, its process and state folder."""

    url: str
    home: Path
    process: subprocess.Popen[str]
    told: dict
    key: str = KEY

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def client(self, **more) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60, trust_env=False, **more)

    def kill(self) -> None:
        """As the kernel does it when memory runs out."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        if self.process.stdout:
            self.process.stdout.close()


def environment(home: Path, **more: str) -> dict[str, str]:
    foreign = ("SMALTI_", "OPENAI_", "DATABRICKS_", "MLFLOW_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return clean | {"SMALTI_HOME": str(home), "SMALTI_ADMIN_KEY": KEY, "SMALTI_MLFLOW": "false", "HF_HUB_OFFLINE": "1"} | more


def smalti(*arguments: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command line and wait for it."""
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(home, **more), capture_output=True, text=True, timeout=180)


def mlflow_store(home: Path) -> None:
    """MLflow's empty database in a state folder, copied: its hundred migrations take longer than most tests.

    The one that is copied is made once by each version of MLflow on a machine, and kept among the temporary files.
    """
    kept = Path(tempfile.gettempdir()) / f"smalti-tests-mlflow-{version('mlflow')}-{os.getuid()}" / "mlflow.db"
    kept.parent.mkdir(mode=0o700, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):  # tests run in several processes
        if not kept.exists():
            code = "import sys; from serving.tracking.child import prepare; prepare(sys.argv[1])"
            subprocess.run([sys.executable, "-W", "ignore", "-c", code, f"sqlite:///{kept}"], cwd=ROOT, check=True)
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept, home / "mlflow.db")
    (home / "mlflow.db").chmod(0o600)


def models() -> Path:
    """A folder for the encoder and the classifiers that servers make at their first start, shared by all tests on a machine.

    The names of the files tell what they were made of, so that those of another version are not used.
    """
    where = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    kept = Path(tempfile.gettempdir()) / f"smalti-tests-models-{where}-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    return kept


def _lend(source: Path, target: Path) -> None:
    """What a folder of models has and the other lacks; each file is there whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if (target / file.name).exists() or file.suffix not in (".onnx", ".json"):
            continue
        scratch = target / f".{file.name}.{os.getpid()}"
        shutil.copyfile(file, scratch)
        scratch.replace(target / file.name)


def documents_store(home: Path) -> None:
    """The index of this repository's documents in a state folder, copied, as `mlflow_store` does: half of a first start is its
    embeddings. Made once by each state of the documents and of what reads them."""
    told = hashlib.sha256()
    for path in sorted([*(ROOT / "docs").rglob("*.*"), *(ROOT / "retrieval").rglob("*.py")]):
        told.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    kept = Path(tempfile.gettempdir()) / f"smalti-tests-docs-{told.hexdigest()[:16]}-{os.getuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    with FileLock(kept / "lock"):
        if not (kept / "home").exists():
            made = smalti("index", "add", "docs", str(ROOT / "docs"), home=kept / "partial")
            assert made.returncode == 0, made.stderr
            (kept / "partial").rename(kept / "home")
    shutil.copytree(kept / "home", home)


def start(
    home: Path, docs: Path | None = None, *, port: int = 0, config: Path | None = None, cwd: Path | None = None, **more: str
) -> Live:
    """Start a server in `cwd`, whose folder `docs` it would serve, and wait until it has told that it is ready.

    Without `docs` and `cwd` it starts where no documents are: to index those of this repository takes longer than most tests.
    """
    if cwd is None:
        cwd = ROOT if docs else home.parent / f"{home.name}-cwd"
        cwd.mkdir(parents=True, exist_ok=True)
    given = ["--config", str(config)] if config else []
    command = [sys.executable, "-m", "app", *given, "serve", "--json", "--port", str(port)]
    command += ["--docs", str(docs)] if docs else []
    if not home.exists():
        if docs == ROOT / "docs":
            documents_store(home)
        if more.get("SMALTI_MLFLOW") == "true":
            mlflow_store(home)
    _lend(models(), home / "models")
    log = open(home.parent / f"{home.name}.log", "a")  # noqa: SIM115 (belongs to the child)
    env = environment(home, PYTHONPATH=str(ROOT)) | more
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    log.close()
    if not line:
        process.wait(10)
        raise RuntimeError(f"the server ended with {process.returncode}: {Path(log.name).read_text()}")
    told = json.loads(line)
    _lend(home / "models", models())
    return Live(told["url"], home, process, told)


def stop(live: Live) -> None:
    """Stop a server as a terminal does, and wait for it."""
    if live.process.poll() is None:
        live.process.send_signal(signal.SIGTERM)
        try:
            live.process.wait(15)
        except subprocess.TimeoutExpired:
            live.process.kill()
            live.process.wait(10)
    if live.process.stdout:
        live.process.stdout.close()


@contextmanager
def serving(
    home: Path, docs: Path | None = None, *, port: int = 0, config: Path | None = None, cwd: Path | None = None, **more: str
) -> Iterator[Live]:
    """A server for the length of a block."""
    live = start(home, docs, port=port, config=config, cwd=cwd, **more)
    try:
        yield live
    finally:
        stop(live)


def wait_until(condition, seconds: float = 60) -> None:
    """Wait for something that happens soon; fails when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
