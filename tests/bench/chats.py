"""Chats without a browser: `python -m tests.bench.chats URL SESSION COUNT QUESTION SECONDS`.

Each opens the page, asks over its socket as a browser does, and takes what the page draws, so that as many as one likes leave the
processor to the server. Prints `on` once all have asked, then what reached them in a second, as JSON.
"""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import sys
import uuid

import aiohttp
import socketio


class Chats:
    """So many chats of one session, and the updates that reach them."""

    def __init__(self, url: str, session: str) -> None:
        self.url, self.session = url, session
        self.updates = self.size = 0
        self._sockets: list[socketio.AsyncClient] = []

    async def open(self, question: str) -> None:
        """A page, as it is loaded; then its socket, and the question sent from its composer."""
        async with aiohttp.ClientSession(cookies={"smalti_session": self.session}) as session, session.get(self.url) as answer:
            page = html.unescape(await answer.text()).replace('\\"', '"')
        client = re.search(r'"client_id"\s*:\s*"([^"]+)"', page) or re.search(r"client_id['\"]?\s*[:=]\s*['\"]([^'\"]+)", page)
        sends = list(re.finditer(r'\{[^{}]*"type":"send"[^{}]*\}', page))
        assert client is not None
        listener = re.search(r'"listener_id":"([^"]+)"', sends[0][0])
        assert listener is not None
        composer = int(re.findall(r'"(\d+)":\{', page[: sends[0].start()])[-1])
        socket = socketio.AsyncClient()
        socket.on("update", self._updated)
        tab = f"tab_id={uuid.uuid4()}&old_tab_id=&document_id={uuid.uuid4()}"
        address = f"{self.url}?client_id={client[1]}&next_message_id=0&implicit_handshake=true&{tab}"
        cookie = {"Cookie": f"smalti_session={self.session}"}
        path = "/_nicegui_ws/socket.io"
        await socket.connect(address, socketio_path=path, transports=["websocket"], headers=cookie)
        self._sockets.append(socket)
        asked = {"client_id": client[1], "id": composer, "listener_id": listener[1], "args": [json.dumps(question)]}
        await socket.emit("event", asked)

    def _updated(self, told: object) -> None:
        self.updates += 1
        self.size += len(json.dumps(told))


async def main(url: str, session: str, count: int, question: str, seconds: float) -> None:
    chats = Chats(url, session)
    for _ in range(count):
        await chats.open(question)
    print("on", flush=True)
    updates, size = chats.updates, chats.size
    await asyncio.sleep(seconds)
    told = {"updates_per_s": (chats.updates - updates) / seconds, "bytes_per_s": (chats.size - size) / seconds}
    print(json.dumps(told), flush=True)
    os._exit(0)  # the sockets end with it


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(given[0], given[1], int(given[2]), given[3], float(given[4])))
