"""A pytest plugin: a test that calls a real model fails, unless it is marked `real_model`.

It is at work in projects with a `smalti.yaml`, and where `smalti_guard = true` is set in pytest's settings. What is refused is
each connection of the test's process to another machine, and to the model servers that the environment names on this one; what
was refused fails the test even where the agent has caught the error. While cassettes are recorded nothing is refused.
"""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit

import pytest

MARK = "real_model"
RECORD = "SMALTI_RECORD"
ADDRESSES = ("SMALTI_CHAT_BASE_URL", "OPENAI_BASE_URL", "VLLM_BASE_URL", "OLLAMA_HOST")
OLLAMA = 11434
SAYS = "ScriptedModel and CassetteModel answer in tests; mark a test that must ask a real model with @pytest.mark.real_model"


class RealModelCall(AssertionError):
    """A test reached for a real model."""


class _Guard:
    """What the process may not connect to while `on`; audit hooks stay for good, so there is one."""

    def __init__(self) -> None:
        self.on, self.installed = False, False
        self.refused: list[str] = []

    def start(self) -> None:
        self.refused.clear()
        if not self.installed:
            sys.addaudithook(self._audit)
            self.installed = True
        self.on = True

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or event not in ("socket.connect", "socket.getaddrinfo"):
            return
        given = arguments[1] if event == "socket.connect" else arguments[:2]
        if not isinstance(given, tuple) or len(given) < 2:
            return  # a socket of this machine's file system
        host, port = given[0], given[1]
        name = host.decode() if isinstance(host, bytes) else str(host or "")
        if _local(name) and (name, port) not in _named() and port != OLLAMA:
            return
        self.refused.append(f"{name}:{port}")
        raise RealModelCall(f"a test connects to {name}:{port}. {SAYS}.")


_guard = _Guard()


def _local(host: str) -> bool:
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _named() -> set[tuple[str, int | None]]:
    """Model servers that the environment names."""
    found = set()
    for name in ADDRESSES:
        given = os.environ.get(name, "")
        parts = urlsplit(given if "://" in given else f"//{given}")
        if parts.hostname:
            found |= {(parts.hostname, parts.port), *([("127.0.0.1", parts.port)] if parts.hostname == "localhost" else [])}
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "smalti_guard", "whether a real model's call in a test is an error; default: where smalti.yaml is", "bool", None
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}: may ask a real model")


def _guarded(config: pytest.Config) -> bool:
    if os.environ.get(RECORD, "") not in ("", "0"):  # cassettes are being recorded
        return False
    wanted = config.getini("smalti_guard")
    return (config.rootpath / "smalti.yaml").is_file() if wanted is None else bool(wanted)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    _guard.on = False
    if _guarded(item.config) and not item.get_closest_marker(MARK):
        _guard.start()
    try:
        return (yield)
    finally:
        _guard.on = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    done = yield
    if _guard.on and _guard.refused:
        pytest.fail(f"the test connected to {', '.join(dict.fromkeys(_guard.refused))}. {SAYS}.", pytrace=False)
    return done
