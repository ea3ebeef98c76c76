"""Where agents are found: a builder by module path, by file, or by entry point."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

GROUP = "smalti.agents"
"""Entry-point group of third-party builders (https://packaging.python.org/en/latest/specifications/entry-points/)."""

BUILTIN = {name: f"agents.graphs.{name}:build" for name in ("plan_execute", "rag", "react", "router", "supervisor", "swarm")}

Builder = Callable[..., Any]


class AgentLoadError(Exception):
    """An agent's builder cannot be had. One line: what is wrong, where, and what to do."""


def names() -> list[str]:
    """Builders that can be had by name: ours and those of entry points."""
    return sorted({*BUILTIN, *(entry.name for entry in metadata.entry_points(group=GROUP))})


def load_builder(spec: str, *, folder: Path | None = None) -> Builder:
    """The builder that `spec` names.

    Parameters
    ----------
    spec: `package.module:build`, `./agent.py:build` (the part after the colon may be left out: `build`), or a name from
        `names()`.
    folder: what a relative file path counts from; the working directory if None.

    Raises
    ------
    AgentLoadError: it does not import, holds no such name, or what it names cannot be called.
    """
    spec = BUILTIN.get(spec, spec)
    where, _, attribute = spec.rpartition(":") if ":" in spec[2:] else (spec, "", "")
    attribute = attribute or "build"
    if where.endswith(".py"):
        module = _from_file(Path(folder or Path.cwd(), where).resolve(), spec)
    elif ":" in spec or "." in where:
        module = _from_module(where, spec)
    else:
        return _from_entry_point(spec)
    found = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise AgentLoadError(
                f"agent '{spec}': {where} has no '{attribute}'; define `def {attribute}(model, retriever, *, tools=(), "
                f"checkpointer=None)` there or name another function after the colon"
            )
    return _callable(found, spec)


def _callable(found: Any, spec: str) -> Builder:
    if not callable(found):
        raise AgentLoadError(
            f"agent '{spec}' is a {type(found).__name__}, not a function; name the function that builds the graph, "
            "`build(model, retriever, *, tools=(), checkpointer=None)`"
        )
    return found


def _problem(spec: str, error: BaseException, file: str | None = None) -> AgentLoadError:
    place, trace = "", error.__traceback__
    while trace is not None:  # the last line of the failing file itself
        if file is None or trace.tb_frame.f_code.co_filename == file:
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    return AgentLoadError(
        f"agent '{spec}' does not import: {type(error).__name__}: {error} (at {place or 'import'}); "
        "fix that line or install what it needs"
    )


def _from_module(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise AgentLoadError(
                f"agent '{spec}': there is no module '{error.name}'; install its package, or give a file as './agent.py:build'"
            ) from error
        raise _problem(spec, error) from error
    except Exception as error:
        raise _problem(spec, error) from error


def _from_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise AgentLoadError(f"agent '{spec}': there is no file {path}; the path counts from the folder of smalti.yaml")
    # Registered, so that type hints and dataclasses of the file resolve; reloaded on each call, so that edits take effect.
    name = f"smalti_agent_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    made = importlib.util.spec_from_file_location(name, path)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    try:
        made.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise _problem(spec, error, str(path)) from error
    return module


def _from_entry_point(name: str) -> Builder:
    entries = list(metadata.entry_points(group=GROUP, name=name))
    if not entries:
        raise AgentLoadError(
            f"there is no agent builder '{name}'; known names are {', '.join(names())}; or give 'package.module:build' or "
            "'./agent.py:build'"
        )
    try:
        found = entries[0].load()
    except Exception as error:
        raise _problem(f"{name} = {entries[0].value}", error) from error
    return _callable(found, f"{name} = {entries[0].value}")
