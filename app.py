"""The composition root: joins the rooms into one application, and is the `smalti` command line.

Nothing heavy is imported at the top, so that `smalti --help` is instant; `serving.settings.Settings` holds the settings.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agents.commands import agents, dev, new
from evals.commands import evals
from evals.dataset_commands import dataset
from evals.project_commands import project_test
from evals.review_commands import review
from finetune.commands import finetune
from governance.commands import audit, grants, journal, keys, limits, usage
from retrieval.commands import index
from serving.cli import CommandError, Workspace
from serving.commands import ask, doctor, endpoints
from serving.conformance.commands import conformance
from serving.engine_commands import engines
from serving.experiments.commands import experiments
from serving.memory_commands import memory

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI

    from serving.platform import Platform
    from serving.settings import Settings
    from serving.state import Home


def build_app(settings: Settings, home: Home) -> FastAPI:
    """The whole application on a state folder that this process owns.

    Raises
    ------
    StateError: the state cannot be used. SettingsError, ModelSettingError: a setting cannot.
    """
    from serving.application import application
    from serving.platform import Platform

    rooms = [_finetune_routes, _evals_routes, _review_routes, _monitor_routes]
    return application(Platform(settings, home, train_router=_train_router), rooms=rooms)


def _train_router(examples: Path, encoder: Any, cache: Path) -> Any:
    """A classifier (of questions, of what is safe), trained when its examples or the encoder changed."""
    from finetune.tasks.classify import fit_cached

    return fit_cached(examples, encoder.embed, cache, encoder=encoder.fingerprint)


def _finetune_routes(platform: Platform, caller: Any) -> APIRouter:
    """Training runs over HTTP, under the grants on the models they register."""
    from finetune.routes import router
    from finetune.runs import Runs
    from serving.tracking.remote.place import tracking_uri

    return router(
        Runs(platform.home.path / "finetune"),
        tracking_uri=tracking_uri(platform.settings, platform.home.path),
        caller=caller,
        may_register=lambda who, name: platform.model_access.check(who, name, "CAN_MANAGE"),
        refuse=_refuse,
        find_pii=_find_pii,
    )


def _review_routes(platform: Platform, caller: Any) -> APIRouter:
    """Review queues over HTTP, under the grants on the endpoints whose answers they hold."""
    from evals.review import Reviews
    from evals.review_routes import router

    return router(
        Reviews(platform.engine),
        caller=caller,
        manages=lambda who, endpoint: _manages(platform, who, endpoint),
        rows=lambda endpoint, since: platform.journal.rows(since, endpoint=endpoint),
    )


def _monitor_routes(platform: Platform, caller: Any) -> APIRouter:
    """Online scorers: they see what the gateway has answered, and write to the tracking server's traces."""
    from functools import partial

    from evals.online import Online
    from evals.online_routes import router
    from serving.monitors import alert, assess

    online = Online(
        platform.engine,
        platform.settings.monitors,
        scorers=lambda monitor: [_online_scorer(name, platform.encoder) for name in monitor.scorers],
        embed=platform.encoder.embed,
        assess=partial(assess, platform.mlflow),
        alert=partial(alert, platform.settings.upstream_hosts),
    )
    if online.monitors:
        platform.gateway.observers.append(online)
    manages = partial(_manages, platform)
    return router(online, caller=caller, manages=manages)


def _online_scorer(name: str, encoder: Any) -> Any:
    from evals.commands import find_scorer

    if name == "groundedness":
        from evals.groundedness import Groundedness

        return Groundedness(encoder.embed)
    if name == "answerability":
        from evals.answerability import Answerability

        return Answerability(encoder.embed)
    if name == "faithfulness":
        from evals.faithfulness import Faithfulness

        return Faithfulness(encoder.read)
    return find_scorer(name)


def _manages(platform: Platform, who: Any, endpoint: str) -> bool:
    return platform.grants.allowed(who, f"endpoint:{endpoint}", "CAN_MANAGE")


def _evals_routes(platform: Platform, caller: Any) -> APIRouter:
    """Evaluations over HTTP, for administrators."""
    from evals.run_routes import router

    return router(platform.home.path / "evals", caller=caller, refuse=_refuse)


def _refuse(status: int, message: str) -> Exception:
    """An error of a room that does not know the application's own."""
    from governance.call import CallError

    codes = {400: "BAD_REQUEST", 403: "PERMISSION_DENIED", 404: "RESOURCE_DOES_NOT_EXIST", 409: "RESOURCE_CONFLICT"}
    codes[429] = "REQUEST_LIMIT_EXCEEDED"
    return CallError(message, status=status, code=codes.get(status, "BAD_REQUEST"))


def _find_pii(text: str) -> list[str]:
    """Kinds of personal data in a text."""
    from governance.guardrails.pii import find

    return [found.kind for found in find(text)]


def _disliked(settings: Settings, home: Path) -> set[str]:
    """Answers with a thumb down, by request id."""
    from serving.feedback import NAME
    from serving.tracking.remote.server import traces

    told = (each for each in traces(settings, home).events(0) if each.name == NAME and each.value is not None)
    return {each.request_id for each in told if not each.value}


def _redact(text: str) -> str:
    """A text with the kind of each finding in its place, such as [EMAIL]."""
    from governance.guardrails.pii import find

    for found in reversed(find(text)):
        text = f"{text[: found.start]}[{found.kind}]{text[found.end :]}"
    return text


cli = typer.Typer(
    name="smalti",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Agents, vector search, model serving, fine-tuning, an AI gateway and evaluation in one process.",
)
cli.add_typer(index, name="index")
cli.add_typer(agents, name="agents")
cli.add_typer(memory, name="memory")
cli.add_typer(keys, name="keys")
cli.add_typer(grants, name="grants")
cli.add_typer(journal, name="journal")
cli.add_typer(finetune, name="finetune")
cli.add_typer(evals, name="eval")
cli.add_typer(dataset, name="dataset")
evals.add_typer(dataset, name="dataset")
evals.add_typer(review, name="review")
cli.add_typer(experiments, name="experiments")
cli.add_typer(engines, name="engines")
cli.add_typer(conformance, name="conformance")
for command in (ask, endpoints, doctor, usage, limits, audit, new, dev):
    cli.command()(command)
cli.command("test")(project_test)


@cli.callback()
def workspace(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Settings file; default: smalti.yaml here, if there is one.")] = None,
    home: Annotated[Path | None, typer.Option(help="State folder; default: $SMALTI_HOME or .smalti")] = None,
) -> None:
    context.obj = Workspace(config, build_app)
    context.obj.given["home"] = home
    context.obj.find_pii, context.obj.redact = _find_pii, _redact
    context.obj.disliked = lambda: _disliked(context.obj.settings, context.obj.home.path)


@cli.command()
def serve(
    context: typer.Context,
    docs: Annotated[Path | None, typer.Option(help="Folder of documents to answer from; default: docs/ if it is there.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default 8000.")] = None,
    host: Annotated[str | None, typer.Option(help="Address; default 127.0.0.1.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Serve the API, the chat page and the console."""
    from serving.server import run

    work = context.obj
    work.given |= {"docs": docs, "port": port, "host": host}
    run(work, build_app, as_json=as_json)


def main() -> None:
    """Run the command line. What a person can mend is said in one line, without a traceback."""
    try:
        cli()
    except CommandError as error:
        _say(error)
        sys.exit(error.code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("SMALTI_TRACEBACK") or not (_expected(error) or _database(error)):
            raise
        _say(error)
        sys.exit(2)


ROOMS = ("agents", "evals", "finetune", "governance", "retrieval", "serving")


def _expected(error: Exception) -> bool:
    """Whether it was raised to be read by a person: a room's own error, a room's `ValueError` or `KeyError`, or the system's."""
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in ROOMS:
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    raised_in = last.tb_frame.f_globals.get("__name__", "") if last else ""
    return type(error) in (ValueError, KeyError) and raised_in.split(".")[0] in ROOMS


def _database(error: Exception) -> str:
    """What a database that fails wants done, without its statement and values; "" where it is no database."""
    if not type(error).__module__.startswith("sqlalchemy.") or not (cause := getattr(error, "orig", None)):
        return ""
    told = str(cause).strip().split("\n")[0]
    if "malformed" in told or "not a database" in told:
        mend = "It is damaged: stop Smalti and restore the state folder from a copy."
    elif "full" in told or "I/O error" in told or "readonly" in told:
        mend = "Make room on the disk, or let this user write there, and try again: what was confirmed is kept."
    else:
        mend = "Check that it runs and that no other program holds it, and try again."
    return f"the database failed ({told}). {mend}"


def _say(error: Exception) -> None:
    message = error.args[0] if isinstance(error, KeyError) and error.args else _database(error) or error
    if isinstance(error, OSError) and error.filename and error.strerror:
        message = f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}."
    print(f"smalti: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
