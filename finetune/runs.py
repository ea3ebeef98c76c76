"""Runs of recipes: each has a folder, and a process of its own that trains in it.

The folder holds `run.json` (what is to be done), `state.json` (how far it is), `events.jsonl` (all that was told), `log.txt`,
`checkpoints/` and `model/`. Whether the process lives is known from a lock it holds, so a run whose process was killed is seen as
such by everyone. A run that did not complete can be resumed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from filelock import AcquireReturnProxy, FileLock, Timeout

from finetune import threads
from finetune.recipe import Recipe, load_recipe
from finetune.schema import AutoRecipe, BaseRecipe, TrainedRecipe

TERMINAL = ("completed", "failed", "canceled")
"""Kinds of the one event that ends each attempt at a run."""
ACTIVE = ("PENDING", "RUNNING")
"""Of a run's states, those in which it is going on."""
Kind = TypeVar("Kind", bound=BaseRecipe)
START_PATIENCE = 60.0
"""Seconds a new process has until it holds its lock."""


class RunError(Exception):
    """There is no such run, or it cannot do what was asked; the message says what can be done."""


@dataclass(frozen=True)
class TrainingRun:
    """A run by its folder."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def name(self) -> str:
        """What the recipe calls it."""
        return self.spec["name"]

    @property
    def status(self) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED or CANCELED."""
        return self.state()["status"]

    @property
    def spec(self) -> dict[str, Any]:
        """What was asked for: `name`, `recipe`, `tracking_uri`, `threads`, `created`."""
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.spec["recipe"])

    def state(self) -> dict[str, Any]:
        """`status` (PENDING, RUNNING, COMPLETED, FAILED, CANCELED), `message`, `step`, `steps`, `mlflow_run_id`,
        `mlflow_experiment_id`, `result`."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            state = {}
        if "status" not in state:
            return {"status": "PENDING", "message": "It was not started.", **state}
        if state["status"] in ACTIVE and not self.alive():
            newer = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            if newer["status"] not in ACTIVE:
                return newer  # it ended between the two looks
            if state["status"] == "RUNNING" or time.time() - state["started"] > START_PATIENCE:
                message = (
                    f"Its process ended without a word; `smalti finetune resume {self.id}` goes on from the last checkpoint."
                )
                return {**newer, "status": "FAILED", "message": message}
        return state

    def set_state(self, **changes: Any) -> None:
        """Change keys of the state; all of it is on the disk or none."""
        path = self.folder / "state.json"
        state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        new = path.with_name(f".state.{os.getpid()}.{secrets.token_hex(4)}")
        new.write_text(json.dumps({**state, **changes}), encoding="utf-8")
        os.replace(new, path)

    def alive(self) -> bool:
        """Whether its process runs."""
        try:
            with self.lock():
                return False
        except Timeout:
            return True

    def lock(self) -> FileLock:
        """Held by the run's process for as long as it lives."""
        return FileLock(self.folder / "lock", timeout=0)

    def hold(self) -> AcquireReturnProxy:
        """The lock, for a block. Waits: whoever asks whether the run lives has it for a moment. Raises `filelock.Timeout`."""
        return self.lock().acquire(timeout=START_PATIENCE / 2)

    def start(self) -> None:
        """Start a process that trains, or goes on from the newest checkpoint.

        Raises
        ------
        RunError: it is running, or it has completed.
        """
        status = self.state()["status"] if (self.folder / "state.json").exists() else None
        if status in ACTIVE:
            raise RunError(f"Run {self.id} is {status}; `smalti finetune events --follow {self.id}` shows how far it is.")
        if status == "COMPLETED":
            raise RunError(f"Run {self.id} has completed. Run its recipe again to train anew.")
        self._launch()

    @property
    def registrable(self) -> bool:
        """Whether a model came of it that can be registered yet: it has completed, kept its last checkpoint and is no trial."""
        state = self.state()
        done = state["status"] == "COMPLETED" and not (state.get("result") or {}).get("registered")
        return done and "parent_run_id" not in self.spec and any((self.folder / "checkpoints").glob("step-*"))

    def register(self, name: str) -> None:
        """Register what a completed run gave: its process goes on behind the last step, judges the model anew and registers it.

        Parameters
        ----------
        name: `catalog.schema.model`.

        Raises
        ------
        RunError: there is nothing to register. RecipeError: it is no name of a model.
        """
        if not self.registrable:
            raise RunError(
                f"Run {self.id} gave no model to register: it must have completed without one, and have checkpoints "
                "(a search has none; run its recipe again with register_to)."
            )
        spec = self.spec
        recipe = load_recipe({**spec["recipe"], "register_to": name})
        path = self.folder / "run.json"
        new, times = path.with_name(".run.json"), path.stat()
        new.write_text(json.dumps({**spec, "recipe": recipe.model_dump(mode="json")}, indent=1), encoding="utf-8")
        os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))  # by which runs are listed
        os.replace(new, path)
        self._launch()

    def _launch(self) -> None:
        (self.folder / "cancel").unlink(missing_ok=True)
        self.set_state(status="PENDING", message="", started=time.time(), first_event=self.size())
        self._spawn()

    def _spawn(self) -> None:
        environment = {**os.environ, **threads.environment(self.spec["threads"])}
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # or a GPU's memory is lost in pieces
        rooms = str(Path(__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (rooms, os.environ.get("PYTHONPATH"))))
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "finetune.worker", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # neither Ctrl-C here nor the end of the server ends a run
            )
        threading.Thread(target=process.wait, daemon=True).start()  # takes note of its end

    def cancel(self) -> None:
        """Ask the run to end after the step it is in.

        Raises
        ------
        RunError: it does not run.
        """
        if (status := self.state()["status"]) not in ACTIVE:
            raise RunError(f"Run {self.id} is {status}; there is nothing to cancel.")
        (self.folder / "cancel").touch()

    def canceled(self) -> bool:
        return (self.folder / "cancel").exists()

    def emit(self, kind: str, **what: Any) -> None:
        """Append an event; numbers that are not finite become null."""
        line = json.dumps({"time": round(time.time(), 3), "event": kind, **what}, default=str)
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def events(self, *, follow: bool = False, attempt: bool = False) -> Iterator[dict[str, Any]]:
        """What the run told.

        Parameters
        ----------
        follow: wait for more, until the event that ends the attempt.
        attempt: only the latest attempt's.
        """
        at = 0
        if attempt or follow:
            first = json.loads((self.folder / "state.json").read_text(encoding="utf-8")).get("first_event", 0)
            if not attempt:
                yield from (event for event, end in self.since(0)[0] if end <= first)
            at = first
        while True:
            found, over = self.since(at)
            for event, end in found:
                at = end
                yield event
                if follow and event["event"] in TERMINAL:
                    return
            if not follow:
                return
            if over is not None:
                yield over
                return
            time.sleep(0.2)

    def since(self, start: int) -> tuple[list[tuple[dict[str, Any], int]], dict[str, Any] | None]:
        """Events in the file from byte `start`, each with the byte after it; and what to tell if its process ended untold."""
        state = self.state()  # asked before reading: nothing is missed
        untold = {"time": round(time.time(), 3), "event": "failed", "message": state.get("message", "")}
        over = None if state["status"] in ACTIVE or not (self.folder / "state.json").exists() else untold
        try:
            with (self.folder / "events.jsonl").open("rb") as file:
                file.seek(start)
                content = file.read()
        except FileNotFoundError:
            return [], over
        events, at = [], start
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            at += len(line)
            try:
                events.append((json.loads(line), at))
            except ValueError:  # half a line: the process was killed while it wrote, and went on behind it
                continue
        return events, over

    def size(self) -> int:
        path = self.folder / "events.jsonl"
        if not path.exists():
            return 0
        with path.open("r+b") as file:  # a half line that a killed process left gets its end
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.write(b"\n")
        return path.stat().st_size

    def summary(self) -> dict[str, Any]:
        """The run for lists: its id, name, task, status and how far it is."""
        spec, state = self.spec, self.state()
        task, method = spec["recipe"]["task"], spec["recipe"]["method"]
        row = {
            "id": self.id,
            "name": spec["name"],
            "task": f"{task} {method}",
            "created": spec["created"],
            "status": state["status"],
        }
        row |= {"step": state.get("step"), "steps": state.get("steps"), "message": state.get("message") or ""}
        row |= {"created_by": spec.get("created_by", "")}
        row |= {key: state.get(key) for key in ("mlflow_run_id", "mlflow_experiment_id")}
        return row | {"result": state.get("result")}


class Runs:
    """The runs of a state folder.

    Parameters
    ----------
    root: folder of the runs' folders; made when it is first needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(
        self,
        recipe: TrainedRecipe | AutoRecipe,
        *,
        tracking_uri: str,
        created_by: str = "",
        files: Mapping[str, str] | None = None,
        **more: Any,
    ) -> TrainingRun:
        """A new run, not yet started. `files` are kept with it, by the names under which the recipe knows them, as is `more`."""
        identifier = f"{re.sub(r'[^a-z0-9]+', '-', recipe.name.lower()).strip('-')[:40]}-{secrets.token_hex(4)}"
        folder = self.root / identifier
        folder.mkdir(parents=True)
        recipe = _with_files(recipe, folder / "data", files or {})
        spec = {"name": recipe.name, "recipe": _absolute(recipe), "tracking_uri": tracking_uri, "created_by": created_by}
        # Kept with the run: how sums are split over threads decides their last bits.
        spec |= {"threads": recipe.threads or threads.free(), "created": datetime.now(UTC).isoformat(timespec="seconds"), **more}
        (folder / "run.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")
        return TrainingRun(folder)

    @contextmanager
    def files(self, recipe: Kind, files: Mapping[str, str]) -> Iterator[Kind]:
        """The recipe with its files at hand, for the length of a block."""
        with tempfile.TemporaryDirectory() as folder:
            yield _with_files(recipe, Path(folder), files)

    def get(self, identifier: str) -> TrainingRun:
        """A run by its id, or by the beginning of one.

        Raises
        ------
        RunError: there is none, or several.
        """
        found = [run for run in self.list() if run.id == identifier] or [r for r in self.list() if r.id.startswith(identifier)]
        if len(found) != 1 or not identifier:
            reason = f"{len(found)} begin so" if found else "`smalti finetune list` shows those that are there"
            raise RunError(f"There is no one run {identifier!r}: {reason}.")
        return found[0]

    def list(self) -> list[TrainingRun]:
        """All runs, the newest first."""
        found = [TrainingRun(path.parent) for path in self.root.glob("*/run.json")]
        return sorted(found, key=lambda run: (run.folder / "run.json").stat().st_mtime_ns, reverse=True)


def _with_files(recipe: Kind, folder: Path, files: Mapping[str, str]) -> Kind:
    """Writes the files there, and has the recipe name them there."""
    if not files:
        return recipe
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")

    def placed(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {**values, **{key: str(folder / str(values[key])) for key in keys if str(values.get(key)) in files}}

    values = placed(recipe.model_dump(mode="json"), "chat_template")
    return type(recipe).model_validate({**values, "data": placed(values["data"], "train", "eval")})


def _absolute(recipe: TrainedRecipe | AutoRecipe) -> dict[str, Any]:
    """A recipe's values with absolute paths: its process may start elsewhere."""
    from finetune.recipe import find

    values: dict[str, Any] = recipe.model_dump(mode="json")
    for key in ("train", "eval"):
        if values["data"].get(key):
            values["data"][key] = str(find(Path(values["data"][key])).resolve())
    if (folder := find(Path(recipe.base_model).expanduser())).is_dir():
        values["base_model"] = str(folder.resolve())
    return values


def describe(event: Mapping[str, Any]) -> str:
    """An event as one line for people."""
    kind, rest = event["event"], {k: v for k, v in event.items() if k not in ("time", "event")}
    if kind == "progress":
        share = f"step {rest['step']}/{rest['steps']}  loss {rest['loss']:.4f}  lr {rest['learning_rate']:.2e}"
        return f"{share}  {rest['tokens_per_second']:,.0f} tokens/s"
    shown = "  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}" for key, value in rest.items())
    return f"{kind}  {shown}".rstrip()
