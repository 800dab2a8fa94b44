"""A revoked hospital: its key, its answer under way, and what it is told."""

import asyncio
import base64
import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from certs import CA
from certs.enrolment import revoke
from certs.local import FederationPaths, make_federation
from certs.registry import Registry
from protocol.registry import load_registry
from protocol.states import Reason
from server import keys
from server._flower import KEY_HEADER, node_key_bytes
from server.directory import Directory
from server.exchange import Exchange, Letter
from server.guard import PublicGuard
from server.keys import NodeKeys
from server.wire import WireBook

PULL = "/v1/fleet/pull-messages"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationPaths:
    """A federation that this test may change; its registry is looked at every time."""
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.0)
    return make_federation(tmp_path, ["hospital-a", "hospital-b"])


def shut_out(paths: FederationPaths, site: str) -> str:
    """Revoke; the moment."""
    return revoke(CA.load(paths.ca_folder), site, Registry(paths.registry)).when


def header(paths: FederationPaths, site: str) -> bytes:
    """The header that the site's SuperNode sends."""
    return base64.b64encode(node_key_bytes(load_registry(paths.sites_file).sites[site]))


def ask(guard: PublicGuard, key: bytes) -> tuple[int, dict[str, Any]]:
    """What the guard answers to a pull."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": PULL, "headers": [(KEY_HEADER, key)]}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_the_guard_says_that_and_when_a_hospital_was_revoked(own: FederationPaths) -> None:
    """From the next request on, in words a program can read; the others come through; counted."""

    async def flower(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def forward(body: bytes, kind: bytes) -> tuple[int, bytes]:
        return 204, b""

    wire = WireBook()
    guard = PublicGuard(flower, NodeKeys(own.sites_file), wire, forward)
    first, second = header(own, "hospital-a"), header(own, "hospital-b")
    assert ask(guard, first)[0] == 200
    when = shut_out(own, "hospital-a")
    status, body = ask(guard, first)
    assert (status, body["code"], body["revoked_at"]) == (401, "revoked", when)
    assert ask(guard, second)[0] == 200
    assert ask(guard, base64.b64encode(b"nobody's"))[1]["code"] == "unknown_key"
    counted = wire.snapshot()
    assert counted["refused"] == {"revoked": 1, "unknown_key": 1}
    assert counted["sites"]["hospital-a"]["refused"] == 1


def test_nobody_waits_for_a_revoked_hospital(own: FederationPaths) -> None:
    """Its request under way is settled at the next look, and an answer that came counts no more."""

    class Grid:
        def push_messages(self, messages: Any) -> list[str]:
            return []

        def pull_messages(self, ids: Any) -> list[Any]:
            return []

        def get_nodes(self) -> list[Any]:
            return []

    time = [0.0]

    def sleep(seconds: float) -> None:
        time[0] += seconds
        if time[0] > 5 and not revoked:
            revoked.append(shut_out(own, "hospital-a"))

    revoked: list[str] = []
    directory = Directory(Grid(), own.sites_file, ())
    exchange = Exchange(Grid(), directory, clock=lambda: time[0], sleep=sleep)
    letters = [Letter("hospital-a", "1", None, 0)]  # type: ignore[arg-type]
    (answer,) = exchange.gather(letters, 600)
    assert answer.reason is Reason.REVOKED
    assert answer.records is None
    assert answer.seconds < 10
