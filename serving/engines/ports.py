"""A port for a server that must be told one before it starts."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nobody else is given for the next minute.

    A connection to it that has just ended keeps the system from handing it out; a server that sets SO_REUSEADDR, as servers
    do, can take it all the same.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        with socket.create_connection(listener.getsockname()) as client:
            served, _ = listener.accept()
            served.close()  # who closes first keeps the port
            client.recv(1)
        return listener.getsockname()[1]
