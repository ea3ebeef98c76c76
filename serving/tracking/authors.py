"""Who made and who last changed registered models and their versions, which MLflow's registry does not keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.exc import IntegrityError

from serving.tables import model_authors as table
from serving.tracking.access import Change

MADE_BY = "smalti.created_by"
"""Tag in which training runs, and what else writes to the registry itself, name who began them; no client sets it."""
LOCAL = "local"
"""Who that is of commands on this machine."""
_OF_MODEL = {"create", "update", "rename", "set-tag", "delete-tag", "alias"}
_OF_VERSION = {"create", "begin", "finish", "update", "set-tag", "delete-tag", "transition-stage"}


class Authors:
    """The makers' names in one database. Blocking."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    def __call__(self, change: Change) -> None:
        """Take note of a change of the registry."""
        if change.resource == "registered-models" and change.action in _OF_MODEL:
            self._note(change.name, "", change.who.name, made=change.action == "create")
        elif change.resource == "model-versions" and change.action in _OF_VERSION:
            self._note(change.name, change.version, change.who.name, made=change.action in ("create", "begin"))
        elif change.action == "delete":
            gone = delete(table).where(table.c.model == change.name)
            with self._database.begin() as connection:
                connection.execute(gone.where(table.c.version == change.version) if change.version else gone)

    def follow(self, model: str, new: str | None) -> None:
        """A model has another name, or is gone."""
        with self._database.begin() as connection:
            if new:
                connection.execute(delete(table).where(table.c.model == new))
                connection.execute(update(table).where(table.c.model == model).values(model=new))
            else:
                connection.execute(delete(table).where(table.c.model == model))

    def _note(self, model: str, version: str, name: str, *, made: bool) -> None:
        values = {"created_by": name, "updated_by": name} if made else {"updated_by": name}
        key = {"model": model, "version": version}
        changing = update(table).where(table.c.model == model, table.c.version == version).values(**values)
        with self._database.begin() as connection:
            if connection.execute(changing).rowcount:
                return
        try:
            with self._database.begin() as connection:
                connection.execute(table.insert().values(**key, **values))
        except IntegrityError:  # another server was sooner
            with self._database.begin() as connection:
                connection.execute(changing)

    def of(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of models (`name`) and versions (`name`, `version`) with `created_by` and `updated_by`, where they are known."""
        found = list(rows)
        names = {str(row["name"]) for row in found}
        with self._database.connect() as connection:
            known = {(row.model, row.version): row for row in connection.execute(select(table).where(table.c.model.in_(names)))}
        told = []
        for row in found:
            author = known.get((str(row["name"]), str(row.get("version") or "")))
            made = (author and author.created_by) or _tagged(row)
            told.append({**row, "created_by": made, "updated_by": (author and author.updated_by) or made})
        return told


def _tagged(row: Mapping[str, Any]) -> str | None:
    return next((tag.get("value") for tag in row.get("tags") or () if tag.get("key") == MADE_BY), None)
