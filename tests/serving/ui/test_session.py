"""Signing in and out over real HTTP, and once in a real Chromium."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import expect

from governance.call import Caller
from serving.ui.session import COOKIE, OneTimeCodes, local_path


@pytest.fixture
def client(world):
    with httpx.Client(base_url=world.url, headers={"origin": world.url, "accept": "text/html"}) as client:
        yield client


def test_right_key_becomes_a_session_of_its_own(world, client):
    answer = client.post("/login", data={"key": f" {world.alice_key} ", "next": "/console"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie  # plain http on this machine
    secret = client.cookies[COOKIE]
    assert secret != world.alice_key
    caller = world.identity.authenticate(secret)
    assert (caller.name, caller.admin, caller.groups) == ("alice", False, frozenset({"team-a"}))
    key = next(key for key in world.identity.list_keys("alice") if key.id == caller.key_id)
    assert key.label == "session"
    assert key.expires is not None


@pytest.mark.parametrize("key", ["", "smk_wrong", "x" * 600, "smk_ä\x00"])
def test_wrong_key_is_told_and_signs_no_one_in(client, key):
    answer = client.post("/login", data={"key": key})
    assert answer.status_code in (400, 401)
    assert 'role="alert"' in answer.text
    assert "set-cookie" not in answer.headers
    assert not key or key not in answer.text


def test_form_too_large_is_refused(client):
    assert client.post("/login", data={"key": "x" * 20_000}).status_code == 400


def test_session_ends_with_the_key_it_was_made_from(world, client):
    key, secret = world.identity.create_key("bob")
    client.post("/login", data={"key": secret})
    assert client.get("/documents/main.default.docs/guide").status_code == 200
    world.identity.revoke(key.id)
    assert client.get("/documents/main.default.docs/guide").headers["location"].startswith("/login")


def test_one_time_link_works_once(world, client):
    code = world.codes.issue(Caller("admin", admin=True))
    answer = client.get(f"/signin?code={code}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert world.identity.authenticate(client.cookies[COOKIE]).admin
    again = httpx.get(f"{world.url}/signin?code={code}")
    assert again.status_code == 410
    assert "works once" in again.text
    assert "set-cookie" not in again.headers
    assert httpx.get(f"{world.url}/signin").status_code == 410


def test_one_time_code_expires():
    codes = OneTimeCodes(ttl=-1)
    assert codes.redeem(codes.issue(Caller("admin"))) is None


def test_signing_out_ends_the_session_for_good(world, client):
    client.post("/login", data={"key": world.alice_key})
    secret = client.cookies[COOKIE]
    answer = client.post("/logout")
    assert answer.headers["location"] == "/login"
    assert COOKIE not in client.cookies
    late = httpx.get(f"{world.url}/", headers={"cookie": f"{COOKIE}={secret}", "accept": "text/html"})
    assert (late.status_code, late.headers["location"]) == (303, "/login")
    world.identity.authenticate(world.alice_key)  # the key itself stays
    assert client.get("/logout").status_code == 405


@pytest.mark.parametrize(
    "headers", [{"origin": "http://evil.example"}, {"origin": "null"}, {"referer": "http://evil.example/"}, {}]
)
@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_forms_of_other_sites_are_refused(world, path, headers):
    answer = httpx.post(world.url + path, data={"key": world.admin_key}, headers=headers)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_referer_of_this_site_is_enough(world):
    answer = httpx.post(f"{world.url}/login", data={"key": world.admin_key}, headers={"referer": f"{world.url}/login"})
    assert answer.status_code == 303


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.example",
        "//evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "https:/evil",
        "javascript:alert(1)",
        "/a\nb",
        "",
        None,
    ],
)
def test_next_is_never_another_host(target):
    assert local_path(target) == "/"


def test_next_keeps_a_local_path():
    assert local_path("/documents/a.b.c/x?start=1&end=2") == "/documents/a.b.c/x?start=1&end=2"


def test_next_comes_back_after_signing_in(world, client):
    where = "/documents/main.default.docs/guide?start=3&end=9"
    answer = client.get(where)
    assert answer.status_code == 303
    form = client.get(answer.headers["location"])
    assert 'name="next" value="/documents/main.default.docs/guide?start=3&amp;end=9"' in form.text
    bad = client.get("/login?next=//evil.example")
    assert 'name="next" value="/"' in bad.text


@pytest.mark.browser
def test_signing_in_and_out_in_a_browser(world, context, sign_in, samples):
    page = context.new_page()
    page.goto(world.url)
    page.wait_for_url("**/login")
    expect(page.get_by_label("Access key")).to_be_focused()
    page.keyboard.type("smk_not-a-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not known here")
    samples.artifacts.mkdir(exist_ok=True)
    page.screenshot(path=samples.artifacts / "login.png")
    page = sign_in(form=True)
    assert page.evaluate("document.cookie") == ""  # scripts cannot read the session
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/login")
    page.goto(world.url)
    page.wait_for_url("**/login")
