"""Access tokens by OAuth client credentials: fetched where a program signs in, and held for as long as they are good.

Source: https://datatracker.ietf.org/doc/html/rfc6749#section-4.4
"""

from __future__ import annotations

import asyncio
import base64
import re
import time
from dataclasses import dataclass, field
from urllib.parse import quote_plus, urlencode

import orjson

from governance.call import CallError, misconfigured, unavailable
from serving.engines.transport import BREAKS, PASSING, Transport
from serving.engines.upstream import Reach, Upstream

EXCHANGES = ("header_and_body", "header_only", "body_only")
"""Where id and secret stand in the request for a token."""
_LIFE = 300.0
"""Seconds that a token is held whose end is not told."""
_EARLY = 60.0
"""Seconds before its end that a token is no longer used, or a tenth of its life where that is less."""
_MAX_BODY = 1 << 20
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")
_CODE = re.compile(r"[a-z_]{1,64}")


@dataclass(frozen=True, slots=True)
class Client:
    """A program that signs in.

    Parameters
    ----------
    name: what it is for, for messages.
    endpoint: URL that gives tokens.
    reach: which addresses that may be at.
    scope: what the token is to be good for, names with spaces between them; empty leaves it to the server.
    exchange: one of `EXCHANGES`.
    """

    name: str
    endpoint: str
    client_id: str
    secret: str = field(repr=False)
    scope: str = ""
    exchange: str = "header_and_body"
    reach: Reach = "public"


class Tokens:
    """The tokens of one client, for one event loop. Close it with `aclose`."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._transport = Transport(Upstream(client.endpoint, None, reach=client.reach, what="token endpoint"))
        self._token, self._until = "", 0.0
        self._fetching: asyncio.Task[str] | None = None

    async def aclose(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
        await self._transport.aclose()

    async def token(self, refused: str | None = None) -> str:
        """A token that is good now, and is not the one that was `refused`. Raises `CallError`.

        Who comes while one is fetched waits for that one.
        """
        if self._token and self._token != refused and time.monotonic() < self._until:
            return self._token
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch(), name=f"token of {self.client.name}")
            self._fetching.add_done_callback(lambda done: done.cancelled() or done.exception())  # told to all who wait
        return await asyncio.shield(self._fetching)

    async def _fetch(self) -> str:
        client, http = self.client, self._transport
        form = {"grant_type": "client_credentials"} | ({"scope": client.scope} if client.scope else {})
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        if client.exchange != "header_only":
            form |= {"client_id": client.client_id, "client_secret": client.secret}
        if client.exchange != "body_only":
            pair = f"{quote_plus(client.client_id)}:{quote_plus(client.secret)}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        try:
            answer = await http.request("POST", "", "", headers, urlencode(form).encode())
            try:
                raw = await http.read(answer, _MAX_BODY, http.until(http.timeouts.first_byte))
            except TimeoutError:
                raise unavailable(f"The token endpoint at {http.upstream.host} stopped sending.", status=504) from None
            except BREAKS as error:
                raise http.broken(error) from error
            finally:
                answer.release()
        finally:
            await http.aclose()  # it is not needed again soon
        return self._read(answer.status, raw)

    def _read(self, status: int, raw: bytes) -> str:
        """The token of an answer. Raises `CallError`, which tells nothing of the answer but its error's code."""
        host, name = self._transport.upstream.host, self.client.name
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        body = body if isinstance(body, dict) else {}
        if status != 200:
            raise self._refused(status, body)
        token, kind, life = body.get("access_token"), body.get("token_type", "bearer"), body.get("expires_in")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token) or str(kind).lower() != "bearer":
            raise misconfigured(f"The token endpoint at {host} gives no bearer token. Check the token_endpoint of {name}.")
        try:
            seconds = float(life) if life is not None else _LIFE
        except (TypeError, ValueError):
            seconds = _LIFE
        self._token, self._until = token, time.monotonic() + seconds - min(_EARLY, seconds / 10)
        return token

    def _refused(self, status: int, body: dict[str, object]) -> CallError:
        host, name, code = self._transport.upstream.host, self.client.name, body.get("error")
        told = f" ({code})" if isinstance(code, str) and _CODE.fullmatch(code) else ""
        if 300 <= status < 400:
            return misconfigured(f"The token endpoint at {host} redirects, which is not followed. Correct it in {name}.")
        if status == 429 or status >= 500:
            message = f"The token endpoint at {host} failed with HTTP {status}{told}. Send the request again."
            return unavailable(message, status=PASSING.get(status, 502))
        return misconfigured(f"The token endpoint at {host} refuses {name}{told}. Check its client_id, client_secret and scope.")
