"""The FastAPI application: routes, and what holds for every answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.control import API

from . import browser, exposition, handbook, ingest, observing, problems, studies
from .plane import Plane
from .problems import Problem, ProblemBody

# An ingest batch of 5,000 results is 7 MB; the supervisor sends far fewer at once.
MAX_BODY_BYTES: Final = 16 << 20

HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def create_app(plane: Plane) -> FastAPI:
    """Make the application that serves `plane`."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        plane.start()
        yield
        plane.close()

    app = FastAPI(
        title="fedward control plane",
        version=version("fedward"),
        description=__doc__,
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # both of FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.plane = plane
    problems.install(app)
    for module in (ingest, studies, observing, exposition, browser, handbook):
        app.include_router(module.router)
    app.mount("/static", StaticFiles(directory=browser.STATIC), name="static")
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    headers = dict(HEADERS)
    if plane.settings.listen.host not in LOOPBACK:
        # On loopback it would pin every other program's plain "localhost" page to HTTPS too.
        headers["strict-transport-security"] = "max-age=31536000"
    app.add_middleware(_Everywhere, headers=headers)
    return app


class _Everywhere:
    """Security headers on every answer, and a bound on every body."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        api = scope["path"].startswith(API)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *self._headers]
                if api and b"cache-control" not in found:
                    message["headers"].append((b"cache-control", b"no-store"))
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            await _too_large().response()(scope, receive, answer)
            return
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                # FastAPI lets this class through; any other becomes a 400 of its own.
                raise HTTPException(413, _too_large().detail)
            return message

        await self._app(scope, bounded, answer)


def _too_large() -> Problem:
    return Problem(413, "too-large", f"a body has at most {MAX_BODY_BYTES >> 20} MiB")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, with problem documents in the place of its own error bodies."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description="Studies, rounds, hospitals and events of one federation.",
            routes=app.routes,
        )
        known = schema["components"]["schemas"]
        known["ProblemBody"] = ProblemBody.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            known.pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema
