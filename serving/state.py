"""The state folder (`SMALTI_HOME`): one owner, one database, a schema version, and how to reach the owner.

Layout: `smalti.db` (configuration, grants, threads, usage, tables), `journal/`, `chroma/`, `mlflow.db`, `mlartifacts/`,
`models/`, `checkpoints.db`. Only one process may serve a folder; commands that merely read or change policy open the
database beside it.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.schema import CreateColumn

SCHEMA_VERSION = 5
"""Raised whenever a table gains or loses a column, or rows a meaning. Older state is upgraded in place after a copy is kept."""


class StateError(Exception):
    """The state folder cannot be used; the message says which, why and what to do."""


class Home:
    """Paths of a state folder, and the lock that gives it one owner.

    Parameters
    ----------
    path: the folder; made, readable by its owner only, when it is not there.

    Raises
    ------
    StateError: the folder cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(
                f"The state folder {self.path} cannot be made ({error.strerror}). Set SMALTI_HOME to a folder you may write."
            ) from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise StateError(f"The state folder {self.path} is not writable. Set SMALTI_HOME to a folder you may write.")
        self.database = self.path / "smalti.db"
        self.journal = self.path / "journal"
        self.chroma = self.path / "chroma"
        self.snapshots = self.path / "snapshots"
        self.models = self.path / "models"
        self.checkpoints = self.path / "checkpoints.db"
        self.pepper = self.path / "pepper"
        self._address = self.path / "server.json"
        self._lock = FileLock(self.path / "lock", timeout=0)

    @property
    def identity(self) -> str:
        """What tells this folder's server from others on the same database."""
        file = self.path / "identity"
        if not file.exists():
            partial = file.with_name(f".identity.{os.getpid()}")
            partial.write_text(secrets.token_hex(16))
            partial.replace(file)
        return file.read_text().strip()

    def own(self) -> None:
        """Take the folder for this process until it ends, however it ends.

        Raises
        ------
        StateError: another process has it.
        """
        try:
            self._lock.acquire()
        except Timeout:
            holder = self.server() or {}
            who = f"process {holder['pid']}, serving {holder['url']}" if holder else "another process"
            raise StateError(
                f"The state folder {self.path} is in use by {who}. Stop that one, or set SMALTI_HOME to another folder."
            ) from None
        self._address.unlink(missing_ok=True)

    def release(self) -> None:
        if self._lock.is_locked:
            self._address.unlink(missing_ok=True)
            self._lock.release()

    def announce(self, url: str) -> None:
        """Tell commands on this machine where the owner of this folder answers."""
        partial = self._address.with_suffix(".partial")
        partial.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        partial.replace(self._address)

    def server(self) -> dict[str, Any] | None:
        """`{"url", "pid"}` of the process that serves this folder now, or None."""
        try:
            holder = json.loads(self._address.read_text())
        except (OSError, ValueError):
            return None
        if self._lock.is_locked:
            return holder
        probe = FileLock(self.path / "lock", timeout=0)
        try:
            probe.acquire()
        except Timeout:
            return holder
        probe.release()
        return None


@contextmanager
def owned(home: Home) -> Iterator[Home]:
    """`home`, owned for the length of the block."""
    home.own()
    try:
        yield home
    finally:
        home.release()


PRAGMAS = (
    "busy_timeout=30000",
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "wal_autocheckpoint=8000",
    "foreign_keys=ON",
    "secure_delete=ON",
)
"""Of each connection to SQLite. A commit copies the write-ahead log into the database, and waits for the disk, at 32 MB rather
than 4: what commits often (`agents.log`) has it done beside its commits. What is deleted is overwritten in the database, which
not all builds of SQLite do by themselves."""


def open_database(url: str) -> Engine:
    """A database engine with the settings every room relies on.

    SQLite: write-ahead log (readers never wait for the writer), foreign keys enforced, 30 s patience for a second
    writer (https://sqlite.org/wal.html, https://sqlite.org/pragma.html).
    """
    url = _driver(url)
    engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _(connection: Any, _record: Any) -> None:
            cursor = connection.cursor()
            for pragma in PRAGMAS:
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    return engine


def _driver(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgres", "postgresql") else url


def checkpoints(home: Home, url: str | None) -> Path | str:
    """Where threads are kept: in the shared database, where there is one that LangGraph can use, or in the state folder."""
    return "postgresql://" + url.partition("://")[2] if url and url.startswith("postgres") else home.checkpoints


def open_state(home: Home, url: str | None = None) -> Engine:
    """The database of a state folder, or the one at `url`, its tables brought to this version's schema.

    Raises
    ------
    StateError: the state was written by a newer Smalti, or the file is no database.
    """
    from agents.tables import metadata as agents
    from governance.tables import metadata as governance
    from retrieval.tables import metadata as retrieval
    from serving.tables import metadata as serving

    try:
        engine = open_database(url or f"sqlite:///{home.database}")
    except (ArgumentError, ImportError) as error:
        raise StateError(f"database_url (SMALTI_DATABASE_URL) cannot be used: {_plain(error)}") from None
    upgrade(engine, [governance, retrieval, agents, serving])
    return engine


def _plain(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{error.name} is not installed; pip install 'smalti[postgres]'"
    return "it is not a URL like postgresql://smalti:secret@db/smalti"


def upgrade(engine: Engine, metadatas: Sequence[MetaData]) -> None:
    """Bring the database's tables to this version's schema.

    Tables and columns this version adds are made; nothing is dropped. A SQLite file is copied aside first
    (`smalti.db.v<old>.bak`), so that an older Smalti can be gone back to.

    Raises
    ------
    StateError: the state was written by a newer Smalti, or the file is no database.
    """
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(5024)"))
            connection.execute(text("CREATE TABLE IF NOT EXISTS smalti_schema (version INTEGER NOT NULL)"))
            found = connection.execute(text("SELECT max(version) FROM smalti_schema")).scalar()
    except Exception as error:
        raise StateError(
            f"The database {engine.url.render_as_string(hide_password=True)} cannot be opened: {error.__class__.__name__}. "
            "Restore it from a copy, or set SMALTI_HOME to another folder; with SMALTI_DATABASE_URL, check that it runs."
        ) from error
    if found is not None and found > SCHEMA_VERSION:
        raise StateError(
            f"The state in {engine.url.database} has schema {found}; this Smalti knows up to {SCHEMA_VERSION}. "
            "Upgrade Smalti, or set SMALTI_HOME to another folder."
        )
    with _alone(engine):
        _upgrade(engine, metadatas, found)


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    """Servers that share a database and start at the same time change its tables one after the other."""
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(5024)"))
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(5024)"))


def _upgrade(engine: Engine, metadatas: Sequence[MetaData], found: int | None) -> None:
    from governance.hourly import fill_limited
    from serving.ownership import to_principals

    older = found is not None and found < SCHEMA_VERSION
    if older and engine.dialect.name == "sqlite" and engine.url.database:
        _copy(engine, f"{engine.url.database}.v{found}.bak")
    for metadata in metadatas:
        metadata.create_all(engine)
        if older:
            _add_columns(engine, metadata)
        if found is not None:
            for table in metadata.tables.values():  # `create_all` makes them with their table only
                for index in table.indexes:
                    index.create(engine, checkfirst=True)
    if found != SCHEMA_VERSION:
        with engine.begin() as connection:
            if found is not None and found < 4:
                to_principals(connection)
            if found is not None and found < 5:
                fill_limited(connection)
            connection.execute(text("DELETE FROM smalti_schema"))
            connection.execute(text("INSERT INTO smalti_schema (version) VALUES (:v)"), {"v": SCHEMA_VERSION})


def _copy(engine: Engine, target: str) -> None:
    """The database as a file of its own, by SQLite itself.

    A process that opens and closes the file by other means drops the locks that SQLite holds on it: the next command to close the
    database would then take its write-ahead log away from the server (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
    with engine.connect() as connection, closing(sqlite3.connect(target)) as kept:
        held: Any = connection.connection.driver_connection
        held.backup(kept)


def _add_columns(engine: Engine, metadata: MetaData) -> None:
    seen = inspect(engine)
    with engine.begin() as connection:
        for table in metadata.tables.values():
            present = {column["name"] for column in seen.get_columns(table.name)}
            for column in table.columns:
                if column.name not in present:
                    made = f'"{column.name}" {column.type.compile(engine.dialect)}'  # older rows have nothing there
                    if column.server_default is not None:
                        made = str(CreateColumn(column).compile(dialect=engine.dialect))
                    connection.execute(text(f'ALTER TABLE "{table.name}" ADD COLUMN {made}'))
