"""Runs over HTTP: `/api/2.0/smalti/finetune/runs`.

Who may: a run that registers a model takes the say over that model (CAN_MANAGE), any other an administrator. A run is seen by who
began it and by administrators. Only an administrator names files of the server; all others send the rows with the request.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import StreamingResponse

from finetune.base_model import PACKAGED
from finetune.launch import check
from finetune.planned import planned
from finetune.recipe import Recipe, RecipeError, load_recipe
from finetune.runs import ACTIVE, TERMINAL, RunError, Runs, TrainingRun
from finetune.schema import RECIPES, STARTED

MAX_BODY = 64 << 20
MAX_ACTIVE = 4
"""Runs that may be going on at once when they are begun over HTTP."""
KEEP_ALIVE = 15.0
"""Seconds of silence after which a reader of events gets a comment."""
_FILE = re.compile(r"\w[\w.-]{0,120}")
Model = TypeVar("Model", bound=BaseModel)


class Who(Protocol):
    """What is known of a caller."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def admin(self) -> bool: ...


class Asked(BaseModel):
    """A recipe, keys of it to set, and the files it names, by name."""

    model_config = ConfigDict(extra="forbid", regex_engine="python-re")  # the other engine takes 10 MB for this pattern

    recipe: dict[str, Any]
    overrides: list[str] = []
    files: dict[Annotated[str, Field(pattern=rf"^{_FILE.pattern}$")], str] = {}


class Named(BaseModel):
    """What a model is to be called in the registry, `catalog.schema.model`."""

    model_config = ConfigDict(extra="forbid")

    name: str


def router(
    runs: Runs,
    *,
    tracking_uri: str,
    caller: Callable[..., Any],
    may_register: Callable[[Any, str], None],
    refuse: Callable[[int, str], Exception],
    find_pii: Callable[[str], list[str]] | None = None,
) -> APIRouter:
    """Routes of this room.

    Parameters
    ----------
    tracking_uri: MLflow's database, which the runs' processes write to.
    caller: FastAPI dependency that gives the authenticated caller.
    may_register: raises what the application answers with, unless the caller may register versions of the model.
    refuse: an error of a status and a message, as the application answers with.
    find_pii: kinds of personal data in a text.
    """
    routes = APIRouter(prefix="/api/2.0/smalti/finetune", tags=["finetune"])
    who_asks = Depends(caller)
    planning = threading.Lock()

    async def asked(request: Request) -> Asked:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise refuse(413, f"The body is larger than {MAX_BODY >> 20} MB; an administrator can name files of the server.")
        try:
            return Asked.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "body"
            raise refuse(400, f'{place}: {first["msg"]}. Send {{"recipe": {{…}}, "overrides": [], "files": {{}}}}.') from None

    def loaded(wanted: Asked, who: Who) -> Recipe:
        try:
            recipe = load_recipe(wanted.recipe, wanted.overrides)
        except RecipeError as error:
            raise refuse(400, str(error)) from None
        if recipe.register_to:
            may_register(who, recipe.register_to)
        elif not who.admin:
            raise refuse(403, "A run that registers no model takes an administrator; set register_to: catalog.schema.model.")
        named = [str(path) for path in (recipe.data.train, recipe.data.eval, getattr(recipe, "chat_template", None)) if path]
        foreign = [name for name in named if name not in wanted.files]
        base = getattr(recipe, "base_model", None)
        if base is not None and base.removeprefix("sentence-transformers/") not in PACKAGED:
            foreign.append(base)
        if foreign and not who.admin:
            raise refuse(403, f"{foreign[0]!r} is of the server: only an administrator names it. Send files in 'files', by name.")
        return recipe

    def room() -> None:
        if sum(run.state()["status"] in ACTIVE for run in runs.list()) >= MAX_ACTIVE:
            raise refuse(429, f"{MAX_ACTIVE} runs are going on. Wait for one to end, or cancel one.")

    def owned(run_id: str, who: Who) -> TrainingRun:
        run = next((each for each in runs.list() if each.id == run_id), None)
        if run is None or not _sees(who, run):
            raise refuse(404, f"There is no run {run_id[:80]!r} of yours.")
        return run

    @routes.get("/recipes")
    def recipes(who: Who = who_asks) -> dict[str, Any]:
        found = [(task, method, model) for task, methods in RECIPES.items() for method, model in methods.items()]
        return {"recipes": [{"task": t, "method": m, "schema": model.model_json_schema()} for t, m, model in found]}

    @routes.post("/validate")
    def validate(who: Who = who_asks, wanted: Asked = Depends(asked)) -> dict[str, Any]:
        from finetune.validate import validate as look

        recipe = loaded(wanted, who)
        try:
            with runs.files(recipe, wanted.files) as here:
                told = look(here, find_pii).as_dict()
            return _as_sent(told, here, wanted.files)
        except RecipeError as error:
            raise refuse(400, str(error)) from None

    @routes.post("/plan")
    def plan(
        price: Annotated[float, Query(ge=0)] = 0.0,
        memory: Annotated[float | None, Query(gt=0)] = None,
        who: Who = who_asks,
        wanted: Asked = Depends(asked),
    ) -> dict[str, Any]:
        recipe = loaded(wanted, who)
        if not planning.acquire(blocking=False):
            raise refuse(429, "Another plan is being made. Ask again when it is done.")
        try:
            with runs.files(recipe, wanted.files) as here:
                return planned(here, price_per_hour=price, memory=memory)
        except RecipeError as error:
            raise refuse(400, str(error)) from None
        finally:
            planning.release()

    @routes.post("/runs")
    def create(who: Who = who_asks, wanted: Asked = Depends(asked)) -> dict[str, Any]:
        recipe = loaded(wanted, who)
        if not isinstance(recipe, STARTED):
            raise refuse(400, f"task {recipe.task}, method {recipe.method} trains in seconds by `smalti finetune run`; not here.")
        try:
            check(recipe, wanted.files)
        except RecipeError as error:
            raise refuse(400, str(error)) from None
        room()
        run = runs.create(recipe, tracking_uri=tracking_uri, created_by=_owner(who), files=wanted.files)
        run.start()
        return _shown(run)

    @routes.get("/runs")
    def list_runs(who: Who = who_asks) -> dict[str, Any]:
        return {"runs": [run.summary() for run in runs.list() if _sees(who, run)]}

    @routes.get("/runs/{run_id}")
    def get(run_id: str, who: Who = who_asks) -> dict[str, Any]:
        return _shown(owned(run_id, who))

    @routes.post("/runs/{run_id}/cancel")
    def cancel(run_id: str, who: Who = who_asks) -> dict[str, Any]:
        run = owned(run_id, who)
        try:
            run.cancel()
        except RunError as error:
            raise refuse(409, str(error)) from None
        return _shown(run)

    @routes.post("/runs/{run_id}/resume")
    def resume(run_id: str, who: Who = who_asks) -> dict[str, Any]:
        run = owned(run_id, who)
        try:
            run.start()
        except RunError as error:
            raise refuse(409, str(error)) from None
        return _shown(run)

    @routes.post("/runs/{run_id}/register")
    def register(run_id: str, named: Named, who: Who = who_asks) -> dict[str, Any]:
        run = owned(run_id, who)
        may_register(who, named.name)
        room()
        try:
            run.register(named.name)
        except RecipeError as error:
            raise refuse(400, str(error)) from None
        except RunError as error:
            raise refuse(409, str(error)) from None
        return _shown(run)

    @routes.get("/runs/{run_id}/events")
    def events(run_id: str, follow: bool = True, last_event_id: Annotated[int, Header()] = -1, who: Who = who_asks) -> Any:
        run = owned(run_id, who)
        if not follow:
            return {"events": list(run.events())}
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(_frames(run, last_event_id), media_type="text/event-stream", headers=headers)

    return routes


async def _frames(run: TrainingRun, after: int) -> AsyncIterator[str]:
    """All that the run told and tells, as server-sent events: of the events that end an attempt only the latest attempt's."""
    number, at, quiet = -1, 0, time.monotonic()
    while True:
        first = (await asyncio.to_thread(run.state)).get("first_event", 0)
        found, over = await asyncio.to_thread(run.since, at)
        for event, end in found:
            at = end
            last = event["event"] in TERMINAL
            if last and end <= first:
                continue
            number += 1
            if number > after:
                quiet = time.monotonic()
                yield _frame(number, event)
            if last:
                return
        if over is not None:
            yield _frame(number + 1, over)
            return
        if time.monotonic() - quiet > KEEP_ALIVE:
            quiet = time.monotonic()
            yield ": still training\n\n"
        await asyncio.sleep(0.25)


def _as_sent(told: Any, recipe: Recipe, files: Collection[str]) -> Any:
    """What was found, with files by the names that they were sent under, and not by where they lay meanwhile."""
    if isinstance(told, str):
        folders = {str(path.parent) for path in (recipe.data.train, recipe.data.eval) if path and path.name in files}
        for folder in folders:
            told = told.replace(f"{folder}/", "")
        return told
    if isinstance(told, dict):
        return {key: _as_sent(value, recipe, files) for key, value in told.items()}
    return [_as_sent(each, recipe, files) for each in told] if isinstance(told, list | tuple) else told


def _frame(number: int, event: Mapping[str, Any]) -> str:
    return f"id: {number}\nevent: {event['event']}\ndata: {json.dumps(event)}\n\n"


def _owner(who: Who) -> str:
    return f"{who.kind}:{who.name}"


def _sees(who: Who, run: TrainingRun) -> bool:
    return who.admin or run.spec.get("created_by") == _owner(who)


def _shown(run: TrainingRun) -> dict[str, Any]:
    return {**run.summary(), "recipe": run.spec["recipe"], "registrable": run.registrable}
