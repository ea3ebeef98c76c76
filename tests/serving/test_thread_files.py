"""Documents of one conversation: found there by their owner, nowhere else and by nobody else."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy

from governance.call import Call, Caller, CallError
from governance.grants import Grants
from governance.tables import create
from retrieval.embed import Encoder
from serving.thread_files import MOST_FILES, ThreadFiles, index_name
from tests.live import models

ANN, BOB = Caller("ann"), Caller("bob", admin=True)
TEXT = b"# Badge\n\nThe badge of Quillon Ferndale is the number 7741, kept in the blue drawer.\n"


@pytest.fixture(scope="module")
def encoder():
    return Encoder.load(models())


@pytest.fixture
def files(tmp_path, encoder):
    database = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'smalti.db'}")
    create(database)
    made = ThreadFiles(tmp_path / "threads", encoder, Grants(database, lambda securable: ()))
    yield made
    made.close()
    database.dispose()


def search(files, index, who, thread):
    async def run():
        call = Call(index, "search", {"query": "the badge of Quillon", "k": 3}, caller=who, thread_id=thread)
        return [event async for event in files.engine(call)][-1].data["result"]["passages"]

    with ThreadPoolExecutor(1) as apart:  # a browser's loop may be running in this thread
        return apart.submit(lambda: asyncio.run(run())).result()


def test_a_document_is_found_in_its_conversation_by_its_owner_alone(files):
    assert files.find("user:ann", "t1") is None
    assert [each.name for each in files.add(ANN, "t1", "badge.md", TEXT)] == ["badge.md"]
    index = files.find("user:ann", "t1")
    assert index == index_name("user:ann", "t1")
    (found, *_) = search(files, index, ANN, "t1")
    assert "7741" in found["text"]
    assert (files.find("user:ann", "t2"), files.find("user:bob", "t1")) == (None, None)
    for who, thread in ((BOB, "t1"), (ANN, "t2"), (ANN, None), (None, "t1")):  # an administrator neither
        with pytest.raises(CallError, match="no such document"):
            search(files, index, who, thread)
    assert files._grants.allowed(ANN, f"index:{index}")
    assert not files._grants.allowed(Caller("eve"), f"index:{index}")


def test_it_goes_with_its_conversation_and_one_that_was_never_begun(files, tmp_path):
    files.add(ANN, "t1", "badge.md", TEXT)
    files.copy(ANN, "t1", "t2")
    assert [each.name for each in files.list("user:ann", "t2")] == ["badge.md"]
    index = files.find("user:ann", "t1")
    files.forget("t1", "user:bob")  # of another owner: nothing happens
    files.forget("t1", "user:ann")
    assert (files.find("user:ann", "t1"), files.list("user:ann", "t1")) == (None, [])
    assert not list(tmp_path.glob(f"threads/{index[-32:]}/*"))
    assert not files._grants.list(f"index:{index}")
    files.tidy(lambda thread, owner: False)  # it may still be begun
    assert files.find("user:ann", "t2")
    owner = next(tmp_path.glob("threads/*/owner.json"))
    owner.write_text(owner.read_text().replace('"at": ', '"at": -'))
    files.tidy(lambda thread, owner: True)
    assert files.find("user:ann", "t2")
    files.tidy(lambda thread, owner: False)
    assert files.find("user:ann", "t2") is None


def test_documents_are_there_after_a_restart(files, tmp_path, encoder):
    files.add(ANN, "t1", "badge.md", TEXT)
    files.close()
    again = ThreadFiles(tmp_path / "threads", encoder, files._grants)
    assert "7741" in search(again, again.find("user:ann", "t1"), ANN, "t1")[0]["text"]
    again.close()


def test_a_service_principal_of_the_same_name_has_documents_of_its_own(files, tmp_path, encoder):
    robot = Caller("ann", "service_principal")
    files.add(ANN, "t1", "badge.md", TEXT)
    index = files.find("user:ann", "t1")
    assert files.list(robot.principal, "t1") == []
    with pytest.raises(CallError, match="no such document"):
        search(files, index, robot, "t1")
    files.add(robot, "t2", "badge.md", TEXT)
    files.close()
    for told in tmp_path.glob("threads/*/owner.json"):  # as an older Smalti noted it
        noted = json.loads(told.read_text())
        told.write_text(json.dumps({"owner": noted.pop("principal").partition(":")[2], **noted}))
    again = ThreadFiles(tmp_path / "threads", encoder, files._grants)
    found = {(who, at): bool(again.find(who, at)) for who in (ANN.principal, robot.principal) for at in ("t1", "t2")}
    assert found == {
        ("user:ann", "t1"): True, ("user:ann", "t2"): False,
        ("service_principal:ann", "t1"): False, ("service_principal:ann", "t2"): True,
    }  # fmt: skip
    assert search(again, again.find(robot.principal, "t2"), robot, "t2")
    again.close()


def bomb() -> bytes:
    """A Word file that would unpack to a gigabyte."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w", force_zip64=True) as part:
            for _ in range(1024):
                part.write(b" " * (1 << 20))
    return held.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.pdf", b"no PDF"),
        ("program.exe", b"MZ\x00\x90" * 40),
        ("picture.png", b"\x89PNG\r\n\x1a\n"),
        ("empty.md", b""),
        ("zeros.txt", b"\x00" * 5000),
        ("bomb.docx", None),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(files, name, content):
    files.add(ANN, "t1", "badge.md", TEXT)
    with pytest.raises(CallError, match=f"{name} cannot be read: .{{4,}} Give a PDF") as refused:
        files.add(ANN, "t1", name, bomb() if content is None else content)
    assert refused.value.status == 400
    assert [each.name for each in files.list("user:ann", "t1")] == ["badge.md"]  # and what was there is there
    assert search(files, files.find("user:ann", "t1"), ANN, "t1")
    with pytest.raises(CallError, match="cannot be read"):
        files.add(ANN, "t9", name, content or b"")
    assert files.find("user:ann", "t9") is None


def test_a_conversation_holds_so_many(files, monkeypatch):
    monkeypatch.setattr("serving.thread_files.MOST_FILES", 2)
    files.add(ANN, "t1", "a.md", TEXT)
    files.add(ANN, "t1", "b.md", TEXT)
    files.add(ANN, "t1", "b.md", TEXT)  # in place of the one before
    with pytest.raises(CallError, match="at most") as refused:
        files.add(ANN, "t1", "c.md", TEXT)
    assert refused.value.status == 413
    assert [each.name for each in files.remove("user:ann", "t1", "a.md")] == ["b.md"]
    assert files.remove("user:ann", "t1", "b.md") == []
    assert files.find("user:ann", "t1") is None
    assert MOST_FILES == 20
