"""The process that runs MLflow's tracking server: `python -m serving.tracking.child SOCKET`, started by `server` alone.

It is configured by the variables `mlflow server` hands to its workers (mlflow/server/constants.py).
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def serve(path: Path) -> None:
    """Serve MLflow on the unix socket `path` until the parent closes our stdin (it ended) or terminates us."""

    def until_parent_ends() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=until_parent_ends, daemon=True).start()
    os.umask(0o077)
    started = os.dup(1)
    os.dup2(2, 1)  # what MLflow prints belongs in the log
    os.nice(5)  # answers come first

    warnings.simplefilter("ignore")
    backend = os.environ["_MLFLOW_SERVER_FILE_STORE"]
    prepare(backend)

    import uvicorn
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    from serving.tracking.versions import install

    initialize_backend_stores(backend, backend, os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"])
    install(app, Path(os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"]))

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            os.write(started, b"ready\n")

    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, proxy_headers=False, server_header=False, timeout_graceful_shutdown=3
        )
        Server(config).run(sockets=[listener])


def prepare(uri: str) -> None:
    """Make the tables, or bring an older MLflow's up to date.

    Of an SQLite file this is done on a copy that then takes its place, so that being killed leaves no half-made database;
    the older file is kept as `mlflow.db.before-upgrade`.
    """
    import sqlalchemy
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels import models  # noqa: F401 - the tables utils looks for
    from sqlalchemy import event

    url = sqlalchemy.make_url(uri)
    path = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
    scratch = path.with_name(f"{path.name}.new") if path else None

    def run(target: sqlalchemy.URL, work: Callable[[sqlalchemy.Engine], object]) -> object:
        engine = sqlalchemy.create_engine(target)
        try:
            return work(engine)
        finally:
            engine.dispose()

    def current(engine: sqlalchemy.Engine) -> bool:
        return utils._all_tables_exist(engine) and utils._get_schema_version(engine) == utils._get_latest_schema_revision()

    def bring_up(engine: sqlalchemy.Engine) -> None:
        if scratch is not None:
            event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        (utils._initialize_tables if utils._is_empty_database(engine) else utils._upgrade_db)(engine)

    if path is None or scratch is None:
        if not run(url, current):
            run(url, bring_up)
        return
    with FileLock(path.with_name(f"{path.name}.lock")):  # a command may do this while the server starts
        if path.exists() and run(url, current):
            return
        _replaced(path, scratch, lambda: run(url.set(database=str(scratch)), bring_up))


def _replaced(path: Path, scratch: Path, bring_up: Callable[[], object]) -> None:
    """Bring `scratch`, a copy of the database at `path` where there is one, up to date, and put it in its place.

    Nothing waits for the disk until the end: MLflow's migrations commit a hundred times, and what is half made is thrown away.
    """
    for left_over in (scratch, scratch.with_name(f"{scratch.name}-journal")):  # of a start that was killed
        left_over.unlink(missing_ok=True)
    if path.exists():
        shutil.copy2(path, path.with_name(f"{path.name}.before-upgrade"))
        shutil.copy2(path, scratch)
    bring_up()
    with scratch.open("rb") as done:
        os.fsync(done.fileno())
    scratch.replace(path)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
