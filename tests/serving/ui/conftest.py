"""A running server with our pages and a real Chromium, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from governance.call import CallError
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
    context.set_default_timeout(8000)
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
            options: dict[str, Any] = {"admin": caller.admin, "label": "session", "ttl": 60, "parent": caller.key_id}
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
