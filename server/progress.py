"""Hospitals' signed progress reports, handed on to the control plane as they are.

A hospital opens one connection, to the aggregator's one port. The report's signature is checked
where it is used, by the control plane, so this is a pipe with a short patience: a control plane
that is down must not hold connections of the port that the federation lives on.
"""

import ssl

import httpx

from protocol.control import SITE_PROGRESS

from .secrets import read_secret
from .settings import ControlPlaneSettings

SECONDS = 3.0
MAX_ANSWER_BYTES = 64 << 10


class ProgressForwarder:
    """An HTTPS client of the control plane for one route."""

    def __init__(self, plane: ControlPlaneSettings) -> None:
        self._plane = plane
        self._client = httpx.AsyncClient(
            base_url=plane.url,
            verify=ssl.create_default_context(cafile=plane.ca),
            timeout=SECONDS,
            trust_env=False,  # HTTPS_PROXY is for the way out of the house, not for this
            limits=httpx.Limits(max_connections=32),
        )

    async def __call__(self, body: bytes, content_type: bytes) -> tuple[int, bytes]:
        """The control plane's status and answer; 503 when it gives none."""
        try:
            response = await self._client.post(
                SITE_PROGRESS,
                content=body,
                headers={
                    "content-type": content_type.decode("latin-1") or "application/octet-stream",
                    "authorization": f"Bearer {read_secret(self._plane.token)}",
                },
            )
        except httpx.HTTPError:
            return 503, b'{"detail": "the control plane does not answer"}'
        return response.status_code, response.content[:MAX_ANSWER_BYTES]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
