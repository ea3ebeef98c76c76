from __future__ import annotations

import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from governance import audit
from governance.call import CallError
from governance.identity import Identity
from governance.oauth import OAuth

from .conftest import House


@pytest.fixture
def identity(database: Engine, home: Path) -> Identity:
    return Identity(database, home / "pepper")


def refused(identity: Identity, secret: str | None) -> str:
    with pytest.raises(CallError) as caught:
        identity.authenticate(secret)
    assert caught.value.status == 401
    assert not secret or secret not in caught.value.message
    return caught.value.message


def test_a_key_stands_for_its_holder(identity: Identity) -> None:
    key, secret = identity.create_key("nightly", kind="service_principal", groups=["jobs", "data"], label="cron")
    caller = identity.authenticate(secret)
    assert (caller.name, caller.kind, caller.groups, caller.admin, caller.key_id) == (
        "nightly",
        "service_principal",
        frozenset({"jobs", "data"}),
        False,
        key.id,
    )
    assert secret.startswith("smk_")
    assert len(secret) == 4 + 43


def test_wrong_and_missing_keys_are_refused(identity: Identity) -> None:
    _, secret = identity.create_key("alice")
    assert "no key was sent" in refused(identity, None)
    assert "no key was sent" in refused(identity, "")
    for wrong in (secret[:-1], secret + "x", secret.lower(), "smk_", "x" * 100_000, "clé\udcff", "\x00"):
        assert "not known" in refused(identity, wrong)


def test_the_secret_is_nowhere_in_the_folder_or_in_text(identity: Identity, home: Path) -> None:
    key, secret = identity.create_key("alice")
    stored = b"".join(file.read_bytes() for file in home.iterdir())
    assert secret.encode() not in stored
    assert secret[4:].encode() not in stored
    identity.authenticate(secret)
    assert secret not in f"{key!r} {identity.list_keys()!r} {identity!r} {key.as_dict()}"


def test_the_pepper_is_for_its_owner_only(identity: Identity, home: Path) -> None:
    assert stat.S_IMODE((home / "pepper").stat().st_mode) == 0o600
    assert [file.name for file in home.iterdir() if file.name.startswith(".pepper")] == []


def test_a_short_pepper_is_an_error(database: Engine, home: Path) -> None:
    (home / "pepper").write_bytes(b"abc")
    with pytest.raises(ValueError, match="damaged"):
        Identity(database, home / "pepper")


def test_revoked_and_expired_keys_say_so(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    key, secret = identity.create_key("alice")
    assert identity.authenticate(secret).name == "alice"
    assert identity.revoke(key.id).revoked is not None
    assert "revoked" in refused(identity, secret)
    _, brief = identity.create_key("alice", ttl=600)
    assert identity.authenticate(brief).name == "alice"
    later = time.time() + 601
    with monkeypatch.context() as clock:
        clock.setattr("governance.identity.time.time", lambda: later)
        assert "expired" in refused(identity, brief)
    with pytest.raises(KeyError, match="no key with id"):
        identity.revoke("nobody")
    with pytest.raises(ValueError, match="ttl"):
        identity.create_key("alice", ttl=0)


def test_revoking_a_key_ends_its_sessions(identity: Identity) -> None:
    key, _ = identity.create_key("alice")
    session, secret = identity.create_key("alice", ttl=60, label="session", parent=key.id)
    _, again = identity.create_key("alice", ttl=60, label="session", parent=session.id)
    _, other = identity.create_key("alice")
    identity.revoke(key.id)
    refused(identity, secret)
    refused(identity, again)
    assert identity.authenticate(other).name == "alice"
    with pytest.raises(ValueError, match="sign in again"):
        identity.create_key("alice", parent=key.id)


def test_expired_keys_are_pruned_in_time(identity: Identity, database: Engine) -> None:
    key, _ = identity.create_key("alice", ttl=10)
    with database.begin() as connection:
        connection.execute(
            text("UPDATE api_keys SET expires = :then WHERE id = :id"), {"then": time.time() - 2 * 86_400, "id": key.id}
        )
    identity.create_key("bob")
    assert [key.name for key in identity.list_keys()] == ["bob"]


def test_groups_belong_to_the_name_and_change_at_once(identity: Identity) -> None:
    _, first = identity.create_key("alice", groups=["b"])
    _, second = identity.create_key("alice", groups=["a"])
    assert identity.authenticate(first).groups == identity.authenticate(second).groups == {"a", "b"}
    assert identity.set_groups("alice", ["c"]) == ("c",)
    assert identity.authenticate(first).groups == {"c"}
    assert identity.groups_of("alice") == {"c"}
    assert [key.groups for key in identity.list_keys("alice")] == [("c",), ("c",)]
    for bad in ("", "a\nb", "x" * 300):
        with pytest.raises(ValueError, match="group"):
            identity.set_groups("alice", [bad])
    with pytest.raises(ValueError, match="kind"):
        identity.create_key("alice", kind="robot")  # type: ignore[arg-type]


def test_the_first_start_makes_one_admin_key(identity: Identity) -> None:
    identity.create_key("cli", admin=True, ttl=60)  # a passing key lets nobody in tomorrow
    secret = identity.ensure_admin()
    assert secret is not None
    assert identity.authenticate(secret).admin
    assert identity.ensure_admin() is None
    for key in identity.list_keys("admin"):
        identity.revoke(key.id)
    assert identity.ensure_admin() is not None


def test_a_lost_pepper_gives_a_new_admin_key(identity: Identity, database: Engine, home: Path) -> None:
    assert identity.ensure_admin() is not None
    (home / "pepper").unlink()
    again = Identity(database, home / "pepper")
    secret = again.ensure_admin()
    assert secret is not None
    assert again.authenticate(secret).admin


def test_a_given_admin_key_replaces_the_one_given_before(identity: Identity) -> None:
    random = identity.ensure_admin()
    assert identity.ensure_admin(" open sesame ") is None
    assert identity.ensure_admin("open sesame") is None
    assert identity.authenticate("open sesame").admin
    _, held = identity.create_key("admin", parent=identity.authenticate("open sesame").key_id, ttl=60, admin=True)
    identity.ensure_admin("passe-partout-é")
    assert identity.authenticate("passe-partout-é").admin
    # an HTTP header's bytes are read as Latin-1
    assert identity.authenticate("passe-partout-é".encode().decode("latin-1")).admin
    refused(identity, "open sesame")
    refused(identity, held)
    assert identity.authenticate(random).admin
    identity.ensure_admin("open sesame")
    assert identity.authenticate("open sesame").admin
    assert [key.label for key in identity.list_keys("admin")].count("given") == 2


@pytest.mark.parametrize("bad", ["short", "1234567", "two\nlines here", "x" * 5_000])
def test_an_unusable_given_key_is_a_clear_error(identity: Identity, bad: str) -> None:
    with pytest.raises(ValueError, match="SMALTI_ADMIN_KEY"):
        identity.ensure_admin(bad)


def test_a_given_key_may_not_be_anothers(identity: Identity) -> None:
    _, secret = identity.create_key("alice")
    with pytest.raises(ValueError, match="user alice"):
        identity.ensure_admin(secret)
    assert not identity.authenticate(secret).admin


def test_revocation_in_another_process_is_in_force_on_the_next_request(identity: Identity, home: Path) -> None:
    key, secret = identity.create_key("alice")
    assert identity.authenticate(secret).name == "alice"
    script = (
        "import sys; from pathlib import Path; from sqlalchemy import create_engine; from governance.identity import Identity\n"
        "home = Path(sys.argv[1]); engine = create_engine(f'sqlite:///{home}/smalti.db')\n"
        "Identity(engine, home / 'pepper').revoke(sys.argv[2]); engine.dispose()"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", script, str(home), key.id], check=True, cwd=root, timeout=100)
    assert "revoked" in refused(identity, secret)


def test_two_processes_that_start_at_once_share_one_pepper_and_one_admin(home: Path) -> None:
    engines = [create_engine(f"sqlite:///{home}/fresh.db", connect_args={"timeout": 30}) for _ in range(4)]
    made: list[str | None] = []
    failures: list[BaseException] = []
    gate = threading.Barrier(len(engines))

    def start(engine: Engine) -> None:
        gate.wait()
        try:
            made.append(Identity(engine, home / "shared-pepper").ensure_admin())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=start, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len([secret for secret in made if secret]) == 1
    identity = Identity(engines[0], home / "shared-pepper")
    assert identity.authenticate(next(secret for secret in made if secret)).admin
    for engine in engines:
        engine.dispose()


def test_a_rotated_key_overlaps_with_the_new_one(house: House) -> None:
    key, old = house.identity.create_key("bob", groups=["support"], scopes=["endpoint:assistant"], label="ci")
    fresh, new = house.identity.rotate(key.id, overlap=60)
    assert (fresh.name, fresh.groups, fresh.label, fresh.scopes) == ("bob", ("support",), "ci", ("endpoint:assistant",))
    assert house.identity.authenticate(old).name == house.identity.authenticate(new).name == "bob"
    house.identity.rotate(fresh.id, overlap=0)
    with pytest.raises(CallError, match="expired"):
        house.identity.authenticate(new)
    with pytest.raises(ValueError, match="in force"):
        house.identity.rotate(fresh.id)
    with pytest.raises(KeyError):
        house.identity.rotate("none")


def test_a_key_with_scopes_is_narrower_than_its_owner(house: House) -> None:
    house.grants.grant("user:alice", "endpoint:chat", "CAN_MANAGE")
    key, narrow = house.identity.create_key("alice", scopes=["endpoint:assistant"])
    caller = house.identity.authenticate(narrow)
    house.grants.check(caller, "endpoint:assistant")
    with pytest.raises(CallError, match="good for endpoint:assistant only"):
        house.grants.check(caller, "endpoint:chat")
    assert house.grants.level(caller, "endpoint:chat") is None
    _, session = house.identity.create_key("alice", parent=key.id)  # what is made from it is as narrow
    assert house.identity.authenticate(session).scopes == {"endpoint:assistant"}
    with pytest.raises(ValueError, match="admin"):
        house.identity.create_key("alice", admin=True, scopes=[])


def test_nothing_made_from_a_key_outlives_it(identity: Identity, database: Engine) -> None:
    """Else whoever holds a key that ends would exchange it for a token, that one for another, and so on for ever."""
    oauth = OAuth(database, identity)
    key, secret = identity.create_key("alice", ttl=600)
    token, seconds = oauth.exchange(secret)
    again, _ = oauth.exchange(token)
    assert 590 < seconds <= 600
    ends = {each.id: each.expires for each in identity.list_keys("alice")}
    assert set(ends.values()) == {key.expires}
    identity.rotate(key.id, overlap=60)
    ends = {each.id: each.expires or 0 for each in identity.list_keys("alice")}
    made = [identity.authenticate(each).key_id or "" for each in (token, again)]
    assert all(ends[each] <= ends[key.id] for each in made), "what was made from it ends with it"
    gone, old = identity.create_key("bob", ttl=600)
    with database.begin() as connection:
        connection.execute(text("UPDATE api_keys SET expires = 1 WHERE id = :id"), {"id": gone.id})
    with pytest.raises(ValueError, match="not in force"):
        identity.create_key("bob", parent=gone.id)
    _, lasting = identity.create_key("carol")
    assert 3590 < oauth.exchange(lasting)[1] <= 3600
    for ttl in (0, -1, 1e308, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="100 years"):
            identity.create_key("bob", ttl=ttl)
    assert old


def test_secrets_of_service_principals_are_on_record(identity: Identity, database: Engine) -> None:
    oauth = OAuth(database, identity)
    _, own = identity.create_key("nightly")
    oauth.exchange(own)  # a user of the same name
    secret = oauth.create_secret("nightly", by="admin")
    token, _ = oauth.token("nightly", secret)
    assert oauth.revoke("nightly", by="admin") == 1
    told = [(each["actor"], each["action"], each["subject"]) for each in audit.entries(database) if "oauth" in each["action"]]
    assert told == [("admin", f"oauth.{action}", "service_principal:nightly") for action in ("revoke", "create")]
    assert secret not in str(audit.entries(database, sessions=True))
    assert "revoked" in refused(identity, token)
    assert [key.live for key in identity.list_keys("nightly") if key.kind == "user"] == [True, True]
