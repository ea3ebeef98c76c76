"""A running server with our pages and a real Chromium, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from governance.call import CallError
from tests.live import KEY, Live, serving
from tests.serving.ui.world import ARTIFACTS, GUIDE, HOSTILE, INDEX, QUOTE_1, QUOTE_2, XSS, World


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("ui"))
    world.start()
    yield world
    world.stop()


@pytest.fixture
def context(world: World, chromium: Browser) -> Iterator[BrowserContext]:
    """A fresh browser profile; at the end: no script of a payload ran, nothing was asked of another host, no error was logged."""
    context = chromium.new_context(
        viewport={"width": 1280, "height": 860}, reduced_motion="reduce", permissions=["clipboard-read", "clipboard-write"]
    )
    context.set_default_timeout(25_000)  # a loaded machine takes its time
    asked: list[str] = []
    problems: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    context.asked, context.problems = asked, problems  # type: ignore[attr-defined]
    yield context
    hit = [page.url for page in context.pages if page.evaluate("window.__xss !== undefined")]
    context.close()
    assert not hit
    ours = (getattr(context, "asked_of", world.url), "data:", "blob:", "about:")
    assert not [url for url in asked if not url.startswith(ours)]
    expected = ("401", "403", "404", "410")
    assert not [text for text in problems if not any(f"status of {code}" in text for code in expected)]


@pytest.fixture
def sign_in(world: World, context: BrowserContext) -> Any:
    """Opens the chat as the admin, or as the caller of a key; `form=True` goes through the sign-in page."""

    def go(key: str | None = None, *, form: bool = False) -> Page:
        page = context.new_page()
        if form:
            page.goto(f"{world.url}/login")
            page.get_by_label("Access key").fill(key or world.admin_key)
            page.get_by_role("button", name="Sign in").click()
        else:
            caller = world.identity.authenticate(key or world.admin_key)
            options: dict[str, Any] = {"admin": caller.admin, "label": "session", "ttl": 600, "parent": caller.key_id}
            secret = world.identity.create_key(caller.name, **options)[1]
            context.add_cookies(
                [{"name": "smalti_session", "value": secret, "url": world.url, "httpOnly": True, "sameSite": "Lax"}]
            )
            page.goto(world.url)
        page.get_by_label("Your question").wait_for()
        return page

    return go


@pytest.fixture
def samples() -> SimpleNamespace:
    return SimpleNamespace(
        xss=XSS, artifacts=ARTIFACTS, index=INDEX, guide=GUIDE, quotes=(QUOTE_1, QUOTE_2), hostile=HOSTILE, error=CallError
    )


expect.set_options(timeout=15_000)

DOCS = {"install.md": GUIDE, "hostile.md": f"# Hostile {XSS[1]}\n\n" + "\n\n".join(XSS)}


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("console")
    docs = folder / "docs"
    docs.mkdir()
    for name, text in DOCS.items():
        (docs / name).write_text(text)
    (docs / f"{XSS[1].replace('/', '')}.pdf").write_bytes(b"no PDF")
    with serving(folder / "home", docs) as server, server.client() as client:
        made = client.post("/api/2.0/smalti/keys", json={"name": "alice", "groups": ["team-a"], "label": XSS[1]}).json()
        client.post("/api/2.0/smalti/keys", json={"name": f"bob {XSS[0]}"})
        server.told["alice"] = made["key"]
        limit = {"calls": 500, "key": "user_group", "principal": XSS[1], "renewal_period": "day"}
        budget = client.put("/api/2.0/serving-endpoints/all-minilm-l6-v2/ai-gateway", json={"rate_limits": [limit]})
        assert budget.status_code == 200, budget.text
        granted = {"access_control_list": [{"user_name": "alice", "permission_level": "CAN_QUERY"}]}
        assert client.patch("/api/2.0/permissions/serving-endpoints/assistant", json=granted).status_code == 200
        for secret, question in ((KEY, "What do I need to install it?"), (made["key"], f"Who prints {XSS[1]}?")):
            asked = {"model": "assistant", "input": question}
            answer = client.post("/v1/responses", json=asked, headers={"Authorization": f"Bearer {secret}"})
            assert answer.status_code == 200, answer.text
        body = {"model": "assistant", "input": "x"}
        assert client.post("/v1/chat/completions", json={**body, "messages": 3}).status_code == 400
        yield server


@pytest.fixture
def console(live: Live, world, context):
    """Opens a page of the console, signed in by a key; the first time through the sign-in page."""
    context.asked_of = live.url
    sessions = live.told.setdefault("sessions", {})

    def go(path: str = "/console", key: str = KEY) -> Page:
        page = context.new_page()
        if key in sessions:
            context.add_cookies(sessions[key])
            page.goto(f"{live.url}{path}")
        else:
            page.goto(f"{live.url}/login?next={path}")
            page.get_by_label("Access key").fill(key)
            page.get_by_role("button", name="Sign in").click()
        page.locator(".console-body h1").wait_for(timeout=30_000)
        page.wait_for_function("window.did_handshake", timeout=30_000)  # what is typed before it reaches nobody
        sessions[key] = context.cookies(live.url)
        return page

    return go
