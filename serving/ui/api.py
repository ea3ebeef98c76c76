"""The server's own HTTP API as its pages ask it: with the signed-in caller's key, so that no grant is checked in two places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from governance.call import CallError

if TYPE_CHECKING:
    from httpx import Response
    from starlette.types import ASGIApp


class Api:
    """Asks the application itself, without a socket.

    Parameters
    ----------
    app: what answers; it may get its routes later.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, credential: str, method: str, path: str, **given: Any) -> Mapping[str, Any]:
        """The JSON of an answer; `given` are `json` and `params` as httpx takes them. Raises `CallError`."""
        return (await self.answer(credential, method, path, **given)).json()

    async def answer(self, credential: str, method: str, path: str, **given: Any) -> Response:
        """The whole answer.

        Raises
        ------
        CallError: what the API refused, with its own message.
        """
        import httpx

        headers = {"Authorization": f"Bearer {credential}", "accept-encoding": "identity"}
        transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://smalti.internal", timeout=None) as client:
            answer = await client.request(method, path, headers=headers, **given)
        if answer.is_success:
            return answer
        try:
            told = answer.json()
        except ValueError:
            told = {}
        message = str(told.get("message") or f"The server answered {method} {path} with {answer.status_code}.")
        raise CallError(message, status=answer.status_code, code=str(told.get("error_code") or "BAD_REQUEST"))
