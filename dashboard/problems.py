"""Errors as RFC 9457 problem documents: a type to switch on, a sentence to read."""

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from protocol.errors import ProtocolError

MEDIA_TYPE: Final = "application/problem+json"
KINDS: Final = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}
PREFIX: Final = "urn:fedward:problem:"


class ProblemBody(BaseModel):
    """What every error answers with."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=[PREFIX + "sequence-gap"], description="what kind of error")
    title: str = Field(examples=["Conflict"], description="the HTTP status in words")
    status: int = Field(examples=[409])
    detail: str = Field(
        examples=["study demo-1a2b3c: expected event 7, got 9"],
        description="a sentence that says what would be right",
    )


class Problem(Exception):
    """An error to answer a request with; `extra` are machine-readable members of the body."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        *,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = headers
        self.extra = extra

    def response(self) -> Response:
        """The HTTP answer."""
        body = {
            "type": PREFIX + self.kind,
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }
        return JSONResponse(body, self.status, self.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""

    @app.exception_handler(Problem)
    def _problem(request: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> Response:
        kind = KINDS.get(error.status_code, "http")
        headers = dict(error.headers) if error.headers else None
        return Problem(error.status_code, kind, str(error.detail), headers=headers).response()

    @app.exception_handler(ProtocolError)
    def _protocol(request: Request, error: ProtocolError) -> Response:
        return Problem(400, "malformed", str(error)).response()

    @app.exception_handler(RequestValidationError)
    def _validation(request: Request, error: RequestValidationError) -> Response:
        found = [
            {"where": ".".join(str(part) for part in item["loc"]), "what": str(item["msg"])}
            for item in error.errors()[:20]
        ]
        first = found[0] if found else {"where": "the request", "what": "is not valid"}
        return Problem(
            422, "invalid", f"{first['where']}: {first['what']}", errors=found
        ).response()

    @app.exception_handler(Exception)
    def _unexpected(request: Request, error: Exception) -> Response:
        return Problem(500, "internal", "the control plane failed; its log says why").response()


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these problems."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
        }
        for status in statuses
    }
