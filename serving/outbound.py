"""Requests that this server sends to addresses that callers chose: webhooks.

Such an address is reached as an upstream is: a public one, or a host in `upstream_hosts`. The address that is connected to is the
one that was checked, no redirect is followed, and of the answer only a beginning is read, for a bounded time.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from serving.engines import addresses

PATIENCE = 10.0
"""Seconds until an answer must have come."""
_MOST = 1 << 16


class Unsent(Exception):
    """A request got no answer, or may not be sent; the message says why, without what is behind the host's name."""


def check(url: str, hosts: Collection[str]) -> None:
    """Raises `ValueError` for what is no address, or one beyond reach; a host that is not known now may be so later."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ValueError("write an http or https address without credentials")
    try:
        _lookup(url, hosts)
    except addresses.NotAllowed:
        message = f"{parts.hostname} lies in a private network; `upstream_hosts: [{parts.hostname}]` in smalti.yaml allows it"
        raise ValueError(message) from None
    except addresses.Unreachable:
        return


def post(
    url: str, body: bytes, headers: Mapping[str, str] | None = None, *, hosts: Collection[str], verify: bool = True
) -> tuple[int, str]:
    """The status and the beginning of the answer to a POST of JSON. Blocking. Raises `Unsent`.

    Parameters
    ----------
    hosts: that may lie in a private network.
    verify: whether a certificate must be one for the host.
    """
    import httpx

    parts = urlsplit(url)
    try:
        address, port = _lookup(url, hosts)
    except addresses.Unreachable as error:
        raise Unsent(str(error)) from None
    literal = f"[{address}]" if ":" in address else address
    target = parts._replace(netloc=f"{literal}:{port}").geturl()
    sent = {**(headers or {}), "host": parts.netloc, "user-agent": "smalti", "content-type": "application/json"}
    deadline, said = time.monotonic() + PATIENCE, b""
    context = ssl.create_default_context() if verify else False
    try:
        with (
            httpx.Client(timeout=PATIENCE, trust_env=False, verify=context, follow_redirects=False) as client,
            client.stream(
                "POST", target, content=body, headers=sent, extensions={"sni_hostname": parts.hostname or ""}
            ) as answer,
        ):
            for piece in answer.iter_bytes():
                said += piece
                if len(said) > _MOST or time.monotonic() > deadline:
                    break
    except httpx.HTTPError as error:
        raise Unsent(f"{type(error).__name__} at {parts.netloc}") from None
    return answer.status_code, said[:_MOST].decode("utf-8", "replace")


def _lookup(url: str, hosts: Collection[str]) -> tuple[str, int]:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    return addresses.lookup(host, port, "any" if host in hosts else "public")[0], port
