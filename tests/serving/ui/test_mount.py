"""How the pages are added: nothing heavy before readiness, a policy on every page, no way in for other sites."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys

import httpx
import pytest

from serving.ui.session import COOKIE

PAGES = [
    "/",
    "/console",
    "/console/journal",
    "/console/endpoints",
    "/console/indexes",
    "/console/access",
    "/login",
    "/documents/main.default.docs/guide",
    "/documents/main.default.docs/none",
    "/signin?code=x",
]


def test_mounting_imports_no_nicegui():
    code = (
        "import sys; from fastapi import FastAPI; from serving.ui import OneTimeCodes, UiServices; "
        "from serving.ui.mount import mount; "
        "s = UiServices(None, None, OneTimeCodes(), *[None] * 6); p = mount(FastAPI(), s); "
        "assert p and not [m for m in ('nicegui', 'socketio', 'pygments', 'markdown_it') if m in sys.modules], sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.parametrize("path", PAGES)
def test_every_page_has_a_policy_without_other_hosts(world, path):
    answer = httpx.get(world.url + path, headers={"cookie": f"{COOKIE}={world.admin_key}", "accept": "text/html"}, timeout=20)
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*|wss?:", policy)
    scripts = re.search(r"script-src ([^;]*)", policy)
    assert scripts
    assert "unsafe-inline" not in scripts[1]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"
    outside = re.findall(r"""(?:src|href|@import|url\()\s*=?\s*["'(]?((?:https?:)?//[^"')\s]+)""", answer.text)
    assert outside == []


def test_nonce_is_new_each_time_and_on_each_script(world):
    nonces = set()
    for _ in range(2):
        answer = httpx.get(world.url, headers={"cookie": f"{COOKIE}={world.admin_key}"}, timeout=20)
        nonce = re.search(r"'nonce-([^']+)'", answer.headers["content-security-policy"])
        assert nonce
        nonces.add(nonce[1])
        assert answer.text.count("<script") == answer.text.count(f'<script nonce="{nonce[1]}"') > 5
    assert len(nonces) == 2


@pytest.mark.parametrize(
    "path", ["/ui/smalti.css", "/ui/chat.js", "/ui/icons.svg", "/ui/mosaic.svg", "/ui/nicegui/fonts.css", "/favicon.ico"]
)
def test_files_of_the_pages_are_served_without_a_key(world, path):
    assert httpx.get(world.url + path, follow_redirects=True).status_code == 200


def test_styles_and_scripts_name_no_other_host(world):
    for name in ("smalti.css", "chat.js", "theme.js", "document.js", "composer.js"):
        text = httpx.get(f"{world.url}/ui/{name}").text
        assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text)


def test_sockets_of_other_sites_are_refused(world):
    path = f"{world.url}/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    assert httpx.get(path, headers={"origin": "http://evil.example"}).status_code == 403
    assert httpx.get(path, headers={"origin": world.url}, timeout=20).status_code == 200


def test_unknown_paths_are_left_to_the_app(world):
    answer = httpx.get(f"{world.url}/v1/nothing")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "Not Found"}


def test_pages_start_again_after_a_stop(world):
    async def again():
        await world.pages.stop()
        await world.pages.start()
        await world.pages.start()

    loop = world.loop
    asyncio.run_coroutine_threadsafe(again(), loop).result(20)
    assert httpx.get(world.url, headers={"cookie": f"{COOKIE}={world.admin_key}"}, timeout=20).status_code == 200
