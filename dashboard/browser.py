"""Routes for people and probes: log-in, the page, liveness and readiness."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Body, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from protocol.control import API

from . import examples, views
from .access import COOKIE, SAFE_METHODS, Principal, address_of
from .depends import Reader, ThePlane
from .expiry import certificate_views
from .plane import Plane
from .problems import Problem, documented

router = APIRouter()

STATIC: Final = Path(__file__).parent / "static"
SESSION: Final = f"{API}/session"
PAGES: Final = ("/", "/studies/{name}", "/hospitals/{name}", "/new-study")

assert "POST" not in SAFE_METHODS  # log-in and log-out below are changes


@router.post(SESSION, tags=["log-in"], responses=documented(400, 401, 403, 413, 422, 429))
def log_in(
    form: Annotated[views.LogIn, Body(openapi_examples=examples.LOG_IN)],
    request: Request,
    response: Response,
    plane: ThePlane,
) -> views.SessionView:
    """Trade a token for a session cookie, in a browser."""
    # A JSON body cannot come from another site's form; this also stops one that could send it.
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise Problem(403, "cross-site", "log in from the control plane's own page")
    cookie, principal = plane.access.log_in(form.token.strip(), address_of(request))
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=int(3600 * plane.settings.access.session_hours),
        httponly=True,
        secure=True,
        samesite="strict",
    )
    return _session(principal)


@router.get(SESSION, tags=["log-in"], responses=documented(401, 403))
def read_session(by: Reader) -> views.SessionView:
    """Who the browser, or the token, speaks for."""
    return _session(by)


@router.delete(SESSION, tags=["log-in"], status_code=204, responses=documented(401, 403))
def log_out(request: Request, response: Response, plane: ThePlane, by: Reader) -> None:
    """End the browser's session."""
    if by.session:
        plane.access.log_out(by, address_of(request))
    response.delete_cookie(COOKIE, secure=True, httponly=True, samesite="strict")


@router.get("/healthz", tags=["probes"])
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": version("fedward")}


@router.get(
    "/readyz",
    tags=["probes"],
    response_model=views.Ready,
    responses={503: {"model": views.Ready, "description": "Service Unavailable"}},
)
def readyz(plane: ThePlane) -> Response:
    """The database can be read, and the registry too."""
    checks = {"database": _database(plane), "registry": plane.enrolled.trouble or "ok"}
    plane.enrolled.registry()
    ready = all(value == "ok" for value in checks.values())
    body = views.Ready(ready=ready, checks=checks, warnings=_ending(plane))
    return JSONResponse(body.model_dump(), 200 if ready else 503)


def page() -> FileResponse:
    """The page: one for all addresses of people; the script reads which from the address."""
    return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})


for _path in PAGES:
    router.add_api_route(_path, page, include_in_schema=False)


def _session(principal: Principal) -> views.SessionView:
    return views.SessionView(
        role=principal.role, csrf=principal.csrf, expires_at=principal.expires_at
    )


def _ending(plane: Plane) -> list[str]:
    """Certificates that end within 30 days; without a token, so no hospital is named."""
    known = certificate_views(plane.settings, plane.enrolled.registry(), time.time())
    due = [one.warning for one in known if one.warning is not None]
    return [
        f"{due.count(days)} certificate(s) "
        + (f"end within {days} day(s)" if days else "have ended")
        for days in sorted(set(due))
    ]


def _database(plane: Plane) -> str:
    try:
        with plane.database.reading() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return "the database does not answer; the log says why"
    return "ok"
