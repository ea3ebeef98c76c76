"""Documents that a person hands to one conversation: searched in that conversation, by that person, and gone with it.

Each conversation with documents has an index of its own, in a database and a folder beside the other indexes, so that nothing
that lists, searches or shares indexes meets it. Its name follows from its owner and its conversation, and is good for no other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.call import Call, Caller, CallError, Engine, Event, bad_request, not_found
from governance.grants import Grants
from retrieval.errors import NotFound, RetrievalError
from retrieval.index import Indexes
from serving.engines.index import index_engine

if TYPE_CHECKING:
    from retrieval.embed import Encoder

log = logging.getLogger("smalti")

PREFIX = "main.threads.t_"
MOST_FILES = 20
MOST_BYTES = 64 << 20
"""Bytes of all of a conversation's documents."""
ABANDONED = 86_400.0
"""Seconds after which documents of a conversation in which nothing was ever said are dropped."""


@dataclass(frozen=True, slots=True)
class ThreadFile:
    """A document of a conversation; `size` in bytes."""

    name: str
    size: int


def index_name(owner: str, thread_id: str) -> str:
    """The index of an owner's conversation."""
    return PREFIX + hashlib.sha256(f"{owner}\0{thread_id}".encode("utf-8", "replace")).hexdigest()[:32]


class ThreadFiles:
    """The documents of all conversations. Methods block; they are called in threads.

    Parameters
    ----------
    folder: made when the first document comes.
    encoder: the one of the other indexes, so that what they find is on one scale.
    grants: the owner of a conversation is granted its index, as every search passes the gateway.
    """

    def __init__(self, folder: Path, encoder: Encoder, grants: Grants) -> None:
        self._folder, self._encoder, self._grants = folder, encoder, grants
        self._lock = threading.Lock()
        self._changing: dict[str, threading.RLock] = {}
        self._indexes: Indexes | None = None
        self._owners: dict[str, str] = {}
        self._of: dict[tuple[str, str], str] = {}
        for told in folder.glob("*/owner.json"):
            noted = json.loads(told.read_text(encoding="utf-8"))
            index = PREFIX + told.parent.name
            self._note(index, noted.get("principal") or self._granted(index, noted["owner"]), noted["thread_id"])

    def find(self, owner: str, thread_id: str | None) -> str | None:
        """The index of an owner's conversation, None where it has no documents."""
        return self._of.get((owner, thread_id)) if thread_id else None

    def holds(self, index: str) -> bool:
        """Whether an index is one of these."""
        return index in self._owners

    @property
    def engine(self) -> Engine:
        """Searches a conversation's documents on behalf of its owner in that conversation, and shows them to the owner."""

        async def run(call: Call) -> AsyncIterator[Event]:
            who = call.caller.principal if call.caller else ""
            of_thread = call.task == "document" or call.endpoint == self.find(who, call.thread_id)
            if self._owners.get(call.endpoint) != who or not of_thread:
                raise not_found("There is no such document of yours: those of a conversation are its owner's, and go with it.")
            async with aclosing(index_engine(self._opened())(call)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield event

        return run

    def list(self, owner: str, thread_id: str) -> Sequence[ThreadFile]:
        """An owner's documents in a conversation, by name."""
        name = self.find(owner, thread_id)
        if name is None:
            return []
        return [ThreadFile(path.name, path.stat().st_size) for path in sorted(self._files(name).iterdir())]

    def add(self, who: Caller, thread_id: str, name: str, content: bytes) -> Sequence[ThreadFile]:
        """Read a document into the caller's conversation; one of the same name is replaced. Gives all of them.

        Raises
        ------
        CallError: 400 that says why it cannot be read, 413 where it is too much.
        """
        held = [each for each in self.list(who.principal, thread_id) if each.name != name]
        if len(held) >= MOST_FILES or sum(each.size for each in held) + len(content) > MOST_BYTES:
            most = f"{MOST_FILES} documents and {MOST_BYTES >> 20} MB"
            raise CallError(f"A conversation holds {most} at most: remove one first.", status=413, code="REQUEST_TOO_LARGE")
        index = self.find(who.principal, thread_id) or index_name(who.principal, thread_id)
        with self._alone(index):
            self._add(who, thread_id, index, name, content)
            return self.list(who.principal, thread_id)

    def _add(self, who: Caller, thread_id: str, index: str, name: str, content: bytes) -> None:
        files = self._files(index)
        files.mkdir(parents=True, exist_ok=True, mode=0o700)
        told = {"principal": who.principal, "thread_id": thread_id, "at": time.time()}
        (files.parent / "owner.json").write_text(json.dumps(told), encoding="utf-8")
        path = files / name
        path.write_bytes(content)
        self._note(index, who.principal, thread_id)
        try:
            self._read(index, name)
            self._grants.grant(who.principal, f"index:{index}", "CAN_QUERY")
        except BaseException:
            self._drop_file(index, path)
            raise

    def remove(self, owner: str, thread_id: str, name: str) -> Sequence[ThreadFile]:
        """Take a document out of a conversation; gives those that are left."""
        index = self.find(owner, thread_id)
        if index is not None and name in [each.name for each in self.list(owner, thread_id)]:
            with self._alone(index):
                self._drop_file(index, self._files(index) / name)
        return self.list(owner, thread_id)

    def copy(self, who: Caller, thread_id: str, to: str) -> None:
        """Have another conversation of the caller's hold the same documents."""
        index = self.find(who.principal, thread_id)
        for each in self.list(who.principal, thread_id) if index else ():
            self.add(who, to, each.name, (self._files(index or "") / each.name).read_bytes())

    def forget(self, thread_id: str, owner: str) -> None:
        """Drop all documents of a conversation, and what was indexed of them."""
        index = self.find(owner, thread_id)
        if index is not None:
            self._forget(index)

    def tidy(self, known: Callable[[str, str], bool]) -> None:
        """Drop documents whose conversation (`known(thread_id, owner)`) is gone, or never came to be."""
        for index in list(self._owners):
            told = json.loads((self._files(index).parent / "owner.json").read_text(encoding="utf-8"))
            if time.time() - told["at"] > ABANDONED and not known(told["thread_id"], self._owners[index]):
                self._forget(index)

    def close(self) -> None:
        if self._indexes is not None:
            self._indexes.close()
            self._engine.dispose()

    # --- within ---

    def _note(self, index: str, owner: str, thread_id: str) -> None:
        self._owners[index] = owner
        self._of[owner, thread_id] = index

    def _granted(self, index: str, name: str) -> str:
        """Whose documents are that were noted under a bare name, by the grant they came with; the user's where in doubt."""
        named = {f"user:{name}", f"service_principal:{name}"}
        held = {grant.principal for grant in self._grants.list(f"index:{index}")} & named
        return held.pop() if len(held) == 1 else f"user:{name}"

    def _alone(self, index: str) -> threading.RLock:
        """Held while an index is changed."""
        with self._lock:
            return self._changing.setdefault(index, threading.RLock())

    def _files(self, index: str) -> Path:
        return self._folder / index.removeprefix(PREFIX) / "files"

    def _opened(self) -> Indexes:
        """The indexes; opened when the first is needed."""
        from retrieval.tables import metadata
        from serving.state import open_database, upgrade

        with self._lock:
            if self._indexes is None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._engine: Any = open_database(f"sqlite:///{self._folder / 'threads.db'}")
                upgrade(self._engine, [metadata])
                self._indexes = Indexes(self._engine, self._folder / "chroma", self._encoder)
            return self._indexes

    def _read(self, index: str, name: str) -> None:
        """Bring the index up to date. Raises `CallError` where a document is not among what could be read."""
        indexes = self._opened()
        indexes.add(index, self._files(index))
        try:
            indexes.sync(index)
        except RetrievalError as error:
            log.debug("sync of %s: %s", index, error)
        if any(row["source"] == name for row in indexes.rows(index)):
            return
        reason = next((each.reason for each in indexes.get(index).skipped if each.source == name), "no text was found in it")
        kinds = "PDF, Word, PowerPoint, Excel, HTML, Markdown, CSV, JSON, mail, notebook or text"
        raise bad_request(f"{name} cannot be read: {reason}. Give a {kinds} file.", "file")

    def _drop_file(self, index: str, path: Path) -> None:
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            self._forget(index)
            return
        try:
            self._opened().sync(index)
        except RetrievalError as error:
            log.warning("sync of %s: %s", index, error)

    def _forget(self, index: str) -> None:
        with self._alone(index):
            self._owners.pop(index, None)
            for key in [key for key, name in list(self._of.items()) if name == index]:
                self._of.pop(key, None)
            self._grants.forget(f"index:{index}")
            with suppress(NotFound):
                self._opened().drop(index)
            shutil.rmtree(self._files(index).parent, ignore_errors=True)
        self._changing.pop(index, None)
