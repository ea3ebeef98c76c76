"""Volumes and DBFS as databricks-sdk uses them: files go in and out whole, and nobody reads or writes what is not granted."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.config import Config
from databricks.sdk.errors import BadRequest, NotFound, PermissionDenied, ResourceAlreadyExists
from databricks.sdk.service.catalog import VolumeType
from fastapi import FastAPI, Request
from sqlalchemy import create_engine

from governance.call import Caller
from governance.grants import Grants
from governance.identity import Identity
from serving import databricks, errors
from serving.files import dbfs, volumes
from serving.files import routes as files
from serving.files.artifacts import Artifacts
from serving.registry import Registry
from serving.routes import bearer
from serving.tracking.access import ModelAccess
from tests.serving.upstream import serving

AT = "/Volumes/main/default/letters"


class Site:
    """A server with files alone. `shared` holds what it has in common with others: the database and the volumes."""

    def __init__(self, home: Path, shared: Path | None = None) -> None:
        engine = create_engine(f"sqlite:///{shared or home}/smalti.db")
        self.identity, self.grants = Identity(engine, (shared or home) / "pepper"), Grants(engine)
        self.home, self.key = home, self.identity.ensure_admin() or ""
        registry, kept = Registry(home), volumes.Volumes(shared or home, self.grants)
        artifacts = Artifacts(home, registry)

        async def caller(request: Request) -> Caller:
            return self.identity.authenticate(bearer(request.headers))

        self.app = FastAPI(openapi_url=None)
        mlflow: Any = None  # files of runs are not asked for
        self.app.include_router(files.router(artifacts, mlflow, ModelAccess(self.grants, registry), kept, caller))
        self.app.include_router(volumes.router(kept, caller))
        self.app.include_router(dbfs.router(dbfs.Dbfs(kept), caller))
        self.app.include_router(databricks.fallback())
        errors.install(self.app)
        self.engine, self.url = engine, ""
        self.opened: list[WorkspaceClient] = []

    def client(self, key: str | None = None) -> WorkspaceClient:
        made = WorkspaceClient(config=Config(host=self.url, token=key or self.key, retry_timeout_seconds=1))
        self.opened.append(made)
        return made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("home"))
    with serving(made.app) as made.url:
        yield made
        for client in made.opened:
            client.api_client._api_client._session.close()
    made.engine.dispose()


@pytest.fixture(scope="module")
def w(site: Site) -> WorkspaceClient:
    made = site.client()
    with pytest.raises(NotFound, match=r"no volume 'main.default.letters'. Make it"):
        made.files.upload(f"{AT}/a.txt", io.BytesIO(b"x"))
    assert made.volumes.create("main", "default", "letters", VolumeType.MANAGED).full_name == "main.default.letters"
    return made


def test_files_of_a_volume(w: WorkspaceClient) -> None:
    w.files.create_directory(f"{AT}/old")
    w.files.upload(f"{AT}/old/a.txt", io.BytesIO(b"Dear Ann"))
    assert w.files.download(f"{AT}/old/a.txt").contents.read() == b"Dear Ann"
    assert w.files.get_metadata(f"{AT}/old/a.txt").content_length == 8
    assert [each.path for each in w.files.list_directory_contents(f"{AT}/old")] == [f"{AT}/old/a.txt"]
    assert w.dbfs.download(f"dbfs:{AT}/old/a.txt").read(-1) == b"Dear Ann"
    w.files.delete(f"{AT}/old/a.txt")
    w.files.delete_directory(f"{AT}/old")
    assert [each.full_name for each in w.volumes.list("main", "default")] == ["main.default.letters"]
    assert w.volumes.read("main.default.letters").storage_location == f"dbfs:{AT}"
    with pytest.raises(ResourceAlreadyExists):
        w.volumes.create("main", "default", "letters", VolumeType.MANAGED)
    with pytest.raises(BadRequest, match="MANAGED"):
        w.volumes.create("main", "default", "far", VolumeType.EXTERNAL, storage_location="s3://far")
    w.volumes.create("main", "default", "short", VolumeType.MANAGED)
    w.volumes.delete("main.default.short")
    with pytest.raises(NotFound):
        w.volumes.read("main.default.short")


def test_files_of_dbfs(w: WorkspaceClient, site: Site) -> None:
    large = bytes(range(256)) * 10_000
    with w.dbfs.open("/tmp/large", write=True) as file:
        file.write(large)
        assert not w.dbfs.exists("/tmp/large")  # until it is whole
    with w.dbfs.open("/tmp/large", read=True) as file:
        assert file.read() == large
    with pytest.raises(ResourceAlreadyExists):
        w.dbfs.create("/tmp/large")
    w.dbfs.mkdirs("/tmp/deep/er")
    w.dbfs.move("/tmp/large", "/tmp/deep")
    w.dbfs.copy("/tmp/deep/large", "/tmp/copy")
    assert {(each.path, each.is_dir) for each in w.dbfs.list("/tmp")} == {("/tmp/copy", False), ("/tmp/deep", True)}
    assert w.dbfs.get_status("/tmp/copy").file_size == len(large)
    w.dbfs.put("/tmp/small", contents="aGVsbG8=", overwrite=True)
    assert w.dbfs.download("/tmp/small").read() == b"hello"
    with pytest.raises(BadRequest, match="not empty"):
        w.api_client.do("POST", "/api/2.0/dbfs/delete", body={"path": "/tmp/deep"})
    w.dbfs.delete("/tmp", recursive=True)
    assert not w.dbfs.exists("/tmp")
    assert list((site.home / ".incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("create", {"path": "tmp/x"}, "begins with '/'"),
        ("create", {"path": "/../../pepper"}, "must be plain"),
        ("put", {"path": "/x", "contents": "%"}, "must be base64"),
        ("put", {"path": "/x", "contents": "QUFB" * (1 << 19)}, "larger than|at most 1 MB"),
        ("add-block", {"handle": 1, "data": ""}, "no open file"),
        ("delete", {"path": "/", "recursive": True}, "itself is not deleted"),
        ("delete", {"path": AT, "recursive": True}, "itself is not deleted"),
        ("move", {"source_path": "/none", "destination_path": "/x"}, "No file or directory"),
        ("mkdirs", {}, "Missing field 'path'"),
    ],
)
def test_what_dbfs_refuses(w: WorkspaceClient, path: str, body: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as refused:
        w.api_client.do("POST", f"/api/2.0/dbfs/{path}", body=body)
    assert "internal" not in type(refused.value).__name__.lower()


def test_nothing_is_anyones_until_granted(w: WorkspaceClient, site: Site) -> None:
    w.files.upload(f"{AT}/secret.txt", io.BytesIO(b"s"))
    w.dbfs.put("/secret.txt", contents="cw==")
    ann = site.client(site.identity.create_key("ann")[1])
    for attempt in (
        lambda: ann.files.download(f"{AT}/secret.txt"),
        lambda: ann.dbfs.download(f"{AT}/secret.txt").read(-1),
        lambda: ann.dbfs.get_status("/secret.txt"),
        lambda: ann.dbfs.put("/x", contents=""),
        lambda: ann.volumes.read("main.default.letters"),
        lambda: ann.volumes.create("main", "default", "mine", VolumeType.MANAGED),
    ):
        with pytest.raises(PermissionDenied):
            attempt()
    assert list(ann.volumes.list("main", "default")) == []
    site.grants.grant("user:ann", "volume:main.default.letters", "CAN_QUERY")
    assert ann.files.download(f"{AT}/secret.txt").contents.read() == b"s"
    with pytest.raises(PermissionDenied, match="CAN_MANAGE"):
        ann.files.delete(f"{AT}/secret.txt")
    site.grants.grant("user:ann", "volume:dbfs", "CAN_MANAGE")
    handle = w.dbfs.create("/theirs").handle
    with pytest.raises(NotFound, match="no open file"):
        ann.dbfs.add_block(handle or 0, "")
    assert httpx.get(f"{site.url}/api/2.0/dbfs/list?path=/").status_code == 401


def test_a_volume_is_renamed_with_its_files_its_comment_and_its_grants(site: Site, w: WorkspaceClient) -> None:
    assert w.volumes.create("main", "default", "old", VolumeType.MANAGED, comment="first").comment == "first"
    w.volumes.create("main", "default", "taken", VolumeType.MANAGED)
    w.files.upload("/Volumes/main/default/old/a.txt", io.BytesIO(b"x"))
    bob = site.client(site.identity.create_key("bob")[1])
    site.grants.grant("user:bob", "volume:main.default.old", "CAN_QUERY")
    with pytest.raises(PermissionDenied):
        bob.volumes.update("main.default.old", comment="mine")
    changed = w.volumes.update("main.default.old", comment="letters of old")
    assert changed.comment == "letters of old"
    assert (changed.created_by, changed.owner, changed.updated_by) == ("admin", "admin", "admin")
    assert (changed.created_at or 0) <= (changed.updated_at or 0)
    with pytest.raises(ResourceAlreadyExists):
        w.volumes.update("main.default.old", new_name="taken")
    with pytest.raises(BadRequest):
        w.volumes.update("main.default.old", new_name="a/b")
    assert w.volumes.update("main.default.old", new_name="new").full_name == "main.default.new"
    assert bob.volumes.read("main.default.new").comment == "letters of old"
    assert bob.volumes.read("main.default.new").created_by == "admin"
    contents = bob.files.download("/Volumes/main/default/new/a.txt").contents
    assert contents is not None
    assert contents.read() == b"x"
    with pytest.raises(NotFound):
        w.volumes.read("main.default.old")
    for name in ("new", "taken"):
        w.volumes.delete(f"main.default.{name}")
    w.volumes.create("main", "default", "new", VolumeType.MANAGED)  # nobody holds what was granted on another of its name
    with pytest.raises(PermissionDenied):
        bob.volumes.read("main.default.new")
    w.volumes.delete("main.default.new")


def test_servers_share_volumes_in_a_folder_that_both_mount(tmp_path: Path) -> None:
    (shared := tmp_path / "shared").mkdir()
    sites = [Site(tmp_path / name, shared) for name in ("one", "two")]
    sites[1].key = sites[0].key
    with serving(sites[0].app) as sites[0].url, serving(sites[1].app) as sites[1].url:
        one, two = (site.client() for site in sites)
        made = one.volumes.create("main", "default", "both", VolumeType.MANAGED, comment="of one")
        told = two.volumes.read("main.default.both")
        assert (told.volume_id, told.comment, told.owner) == (made.volume_id, "of one", "admin")
        two.files.upload("/Volumes/main/default/both/a/b.txt", io.BytesIO(b"by two"))
        found = one.files.download("/Volumes/main/default/both/a/b.txt").contents
        assert found is not None
        assert found.read() == b"by two"
        two.dbfs.put("/tmp/c", contents="aGVsbG8=")
        assert one.dbfs.download("/tmp/c").read() == b"hello"
        one.volumes.delete("main.default.both")
        with pytest.raises(NotFound):
            two.files.download("/Volumes/main/default/both/a/b.txt")
        for client in (one, two):
            client.api_client._api_client._session.close()
    assert list((shared / ".incoming").iterdir()) == []
    for site in sites:
        assert not (site.home / "volumes").exists()
        site.engine.dispose()


def test_a_start_removes_what_uploads_left_and_none_that_may_go_on(tmp_path: Path) -> None:
    kept = volumes.Volumes(tmp_path, Grants(create_engine("sqlite://")))
    kept.incoming.mkdir()
    for name, age in (("old", 90_000), ("new", 60)):
        (kept.incoming / name).write_text("half")
        os.utime(kept.incoming / name, (time.time() - age, time.time() - age))
    kept.tidy()
    assert [each.name for each in kept.incoming.iterdir()] == ["new"]
