"""The two doors of the SuperLink.

    hospital   --TLS-->  public   POST /v1/fleet/<ten routes>   --> Flower
                                  POST /v1/site/progress        --> control plane
                                  GET  /health
    supervisor --TLS-->  private  /v1/control/* (bearer), /v1/runtime/*, /health --> Flower
                                  GET /fedward/wire (bearer)

Flower serves Fleet, Control and Runtime on one port, and neither Control nor, in part, Runtime ask
who is calling: whoever can open a connection can submit code. So nothing that is not on the list
reaches Flower at all. Flower also reads and parses a body before it authenticates the sender (one
unauthenticated 300 MB request took it from 140 to 744 MB), so bodies are counted here first.
"""

import asyncio
import hmac
import json
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from protocol.control import FLEET_PREFIX, MAX_PROGRESS_BYTES, SITE_PROGRESS
from protocol.flower import FLEET_ROUTES, MAX_FLEET_BODY_BYTES

from ._flower import KEY_HEADER
from .keys import KnownNode, NodeKeys
from .wire import WireBook

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Forward = Callable[[bytes, bytes], Awaitable[tuple[int, bytes]]]

FLEET_PATHS: Final = frozenset(FLEET_PREFIX + route for route in FLEET_ROUTES)
PULL_PATH: Final = FLEET_PREFIX + "pull-messages"
WIRE_PATH: Final = "/fedward/wire"

BODY_SECONDS: Final = (
    120.0  # one 512 KiB object takes 4 s at 1 Mbit/s; then a body is a slow attack
)
BODIES_AT_ONCE: Final = 32  # a SuperNode keeps two objects, a poll and a heartbeat in flight
KNOWN_RATE: Final = (200.0, 1000.0)  # requests a second and burst: 100 MB/s in 512 KiB objects
UNKNOWN_RATE: Final = (10.0, 50.0)
REPORT_RATE: Final = (100.0, 300.0)  # by address: behind a load balancer all hospitals have one


class _Refusal(Exception):
    """A request that goes no further."""

    def __init__(self, status: int, reason: str, detail: str, **facts: str) -> None:
        super().__init__(detail)
        self.status, self.reason = status, reason
        self.body = {"detail": detail, "code": reason, **facts}  # the link reads `code` and facts


class RateLimit:
    """A token bucket for each client; the longest silent one is forgotten when there are many."""

    def __init__(self, rate: float, burst: float, clients: int = 10_000) -> None:
        self._rate, self._burst, self._clients = rate, burst, clients
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allow(self, client: str) -> bool:
        """Whether this request of `client` is within its rate."""
        now = time.monotonic()
        tokens, at = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)
        return allowed


class PublicGuard:
    """What hospitals, and anybody else on the network, can reach."""

    def __init__(self, app: App, keys: NodeKeys, wire: WireBook, forward: Forward) -> None:
        self._app, self._keys, self._wire, self._forward = app, keys, wire, forward
        self._known, self._unknown = RateLimit(*KNOWN_RATE), RateLimit(*UNKNOWN_RATE)
        self._reports = RateLimit(*REPORT_RATE)
        self._bodies: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        node = self._keys.node_of(headers.get(KEY_HEADER))
        try:
            await self._route(scope, headers, node, receive, send)
        except _Refusal as refusal:
            self._wire.refused(refusal.reason, node.site if node else "")
            await _answer(send, refusal.status, refusal.body)

    async def _route(
        self,
        scope: Scope,
        headers: dict[bytes, bytes],
        node: KnownNode | None,
        receive: Receive,
        send: Send,
    ) -> None:
        method, path = scope["method"], scope["path"]
        if (method, path) == ("GET", "/health"):
            await _answer(send, 200, {"status": "ok"})
            return
        if (method, path) == ("POST", SITE_PROGRESS):
            await self._report(scope, headers, receive, send)
        elif method != "POST" or path not in FLEET_PATHS:
            raise _Refusal(404, "not_found", "there is nothing here")
        elif node is not None and node.revoked_at is None:
            if not self._known.allow(node.site):
                # Flower's client retries 503 with a back-off; at 429 it would give up.
                raise _Refusal(503, "rate", "too many requests from this hospital")
            await self._fleet(scope, headers, node.site, receive, send)
        elif not self._unknown.allow(_peer(scope)):
            raise _Refusal(429, "rate", "too many requests")
        else:
            raise _not_let_in(node)

    async def _report(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        peer = _peer(scope)
        if not self._reports.allow(peer):
            raise _Refusal(429, "rate", "too many reports")
        body = await self._body(headers, f"report {peer}", receive, MAX_PROGRESS_BYTES)
        status, answer = await self._forward(body, headers.get(b"content-type", b""))
        await _answer_bytes(send, status, answer)

    async def _fleet(
        self, scope: Scope, headers: dict[bytes, bytes], site: str, receive: Receive, send: Send
    ) -> None:
        body = await self._body(headers, site, receive, MAX_FLEET_BODY_BYTES)
        sent = 0
        status = 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal sent, status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent += 17 + _header_bytes(message.get("headers", []))
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, _replay(body, receive), counted)
        finally:
            start_line = len(scope["method"]) + len(scope["path"]) + 12
            self._wire.count(site, start_line + _header_bytes(scope["headers"]) + len(body), sent)
            if status == 401:
                self._wire.refused("unauthenticated", site)
            elif status == 200 and scope["path"] == PULL_PATH:
                self._wire.pulled(site)

    async def _body(
        self, headers: dict[bytes, bytes], client: str, receive: Receive, limit: int
    ) -> bytes:
        """The whole body, counted as it comes: a chunked one announces no length."""
        if int(headers.get(b"content-length", b"0")) > limit:
            raise _Refusal(413, "too_large", f"a body may have {limit} bytes")
        if self._bodies[client] >= BODIES_AT_ONCE:
            raise _Refusal(503, "rate", f"{BODIES_AT_ONCE} requests at once are the most")
        self._bodies[client] += 1
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await _read(receive, limit)
        except TimeoutError:
            raise _Refusal(408, "slow_body", f"the body took over {BODY_SECONDS:.0f} s") from None
        finally:
            self._bodies[client] -= 1
            if not self._bodies[client]:
                del self._bodies[client]


def _not_let_in(node: KnownNode | None) -> _Refusal:
    """What a node is told whose key is revoked, or nobody's.

    401 is what Flower itself answers to a revoked key: a SuperNode then ends in order and its link
    says why. It reads 403 as "the run is not running" and goes on, and would retry a 503 for ever.
    """
    if node is None or node.revoked_at is None:
        return _Refusal(401, "unknown_key", "this node key is not enrolled")
    when = node.revoked_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return _Refusal(401, "revoked", f"{node.site} was revoked at {when}", revoked_at=when)


class PrivateGuard:
    """What the aggregator's own processes can reach, on loopback."""

    def __init__(self, app: App, wire: WireBook, token: str) -> None:
        self._app, self._wire = app, wire
        self._bearer = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path.startswith("/v1/control/") or path == WIRE_PATH:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._bearer):
                self._wire.refused("control_without_token")
                await _answer(send, 401, {"detail": "the Control API needs its bearer token"})
                return
        if path == WIRE_PATH:
            await _answer(send, 200, self._wire.snapshot())
        elif path == "/health" or path.startswith(("/v1/control/", "/v1/runtime/")):
            await self._app(scope, receive, send)
        else:
            await _answer(send, 404, {"detail": "there is nothing here"})


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refusal(400, "disconnected", "the client went away")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise _Refusal(413, "too_large", f"a body may have {limit} bytes")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand on a body that was read; afterwards, whatever the connection says."""
    given = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    await _answer_bytes(send, status, json.dumps(content).encode())


async def _answer_bytes(send: Send, status: int, content: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def _header_bytes(headers: Any) -> int:
    return 2 + sum(len(name) + len(value) + 4 for name, value in headers)
