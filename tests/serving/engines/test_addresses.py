from __future__ import annotations

import socket
from typing import Any

import pytest

from governance.call import Call, CallError
from serving.engines.addresses import Place, Unreachable, lookup, permitted
from serving.engines.external import ExternalChat, Timeouts
from serving.engines.upstream import Reach, Upstream
from tests.serving.upstream import KEY
from tests.serving.upstream import Upstream as Server

PUBLIC, OWN, PRIVATE, ANY = "public", "own", "private", "any"


@pytest.mark.parametrize(
    ("address", "least"),
    [
        ("93.184.216.34", PUBLIC),
        ("2606:2800:220:1::1", PUBLIC),
        ("127.0.0.1", OWN),
        ("::1", OWN),
        ("::ffff:127.0.0.1", OWN),
        ("10.1.2.3", PRIVATE),
        ("192.168.0.1", PRIVATE),
        ("100.64.0.1", PRIVATE),
        ("fd00::1", PRIVATE),
        ("fec0::1", PRIVATE),
        ("192.0.0.1", PRIVATE),
        ("64:ff9b::5db8:d822", PUBLIC),
        ("64:ff9b::a00:1", PRIVATE),
        ("64:ff9b::a9fe:a9fe", ANY),
        ("192.0.0.192", ANY),
        ("168.63.129.16", ANY),
        ("100.100.100.200", ANY),
        ("fd00:ec2::254", ANY),
        ("169.254.169.254", ANY),
        ("::ffff:169.254.169.254", ANY),
        ("2002:a9fe:a9fe::1", ANY),
        ("fe80::1%eth0", ANY),
        ("0.0.0.0", ANY),
        ("224.0.0.1", ANY),
        ("240.0.0.1", ANY),
    ],
)
def test_each_address_is_within_its_reach_only(address: str, least: Reach) -> None:
    order: list[Reach] = ["public", "own", "private", "any"]
    assert [permitted(address, reach) for reach in order] == [order.index(reach) >= order.index(least) for reach in order]


def test_odd_spellings_of_an_address_are_the_same_address() -> None:
    for host in ("127.1", "0x7f000001", "2130706433"):
        with pytest.raises(Unreachable, match="private network"):
            lookup(host, 80, "public")


@pytest.mark.anyio
async def test_a_name_that_changes_its_mind_is_checked_where_it_is_connected_to(monkeypatch: Any) -> None:
    """The first answer of the name server is public, the second one is this machine: the call goes nowhere."""
    upstream = Server()
    port = int(upstream.url.rpartition(":")[2].partition("/")[0])
    answers = ["93.184.216.34", "127.0.0.1"]
    real = socket.getaddrinfo

    def rebinding(host: Any, *more: Any, **named: Any) -> Any:
        if host != "rebind.example":
            return real(host, *more, **named)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0) if len(answers) > 1 else answers[0], port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert lookup("rebind.example", port, "public") == ["93.184.216.34"]  # as when the endpoint is made
    engine = ExternalChat(
        Upstream(f"http://rebind.example:{port}/v1", "echo", KEY, reach="public"), timeouts=Timeouts(connect=60, first_byte=60)
    )
    asked = Call("chat", "chat", {"input": [{"type": "message", "role": "user", "content": "hi"}]})
    try:
        with pytest.raises(CallError, match="private network"):
            async for _ in engine.run(asked):
                pass
        assert upstream.requests == []
        allowed = ExternalChat(Upstream(f"http://rebind.example:{port}/v1", "echo", KEY, reach="own"))
        events = [event async for event in allowed.run(asked)]
        assert events[-1].type == "response.completed"
        await allowed.aclose()
    finally:
        await engine.aclose()
        upstream.close()


@pytest.mark.anyio
async def test_the_name_stays_what_tls_is_checked_against() -> None:
    place = Place("https://localhost:8443/v1", "own")
    assert await place.url() in ("https://127.0.0.1:8443/v1", "https://[::1]:8443/v1")
    assert place.server_hostname == "localhost"
    assert place.host_header == "localhost:8443"
    assert Place("https://localhost/v1", "any").server_hostname is None
