"""The CLI's side of the control plane's API."""

import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from dashboard.views import AuditView, EventView, NodeView, Page, StudyBrief, StudyDetail
from protocol.control import API, EVENTS, NODES, STUDIES, Submission, Submitted
from protocol.errors import FedwardError
from protocol.events import Event
from protocol.study import StudySettings

from .federation import Federation

PAGE = 500


class ControlPlaneError(FedwardError):
    """The control plane cannot be reached, or refuses."""

    exit_code = 4


@dataclass(frozen=True)
class Address:
    """Where a control plane is, whom to trust and who is asking."""

    url: str
    ca: Path
    token_file: Path

    @classmethod
    def of(cls, federation: Federation, role: str = "coordinator") -> "Address":
        """The control plane of a local federation."""
        layout = federation.layout
        return cls(federation.dashboard, layout.trust(), layout.tokens / f"{role}.token")


class ControlPlane:
    """Calls the API; every failure is a sentence."""

    def __init__(self, address: Address) -> None:
        self.address = address
        if not os.access(address.ca, os.R_OK):
            raise ControlPlaneError(f"{address.ca}: cannot read the control plane's CA certificate")
        context = ssl.create_default_context(cafile=str(address.ca))
        self._client = httpx.Client(base_url=address.url, verify=context, timeout=15.0)

    def submit(self, settings: StudySettings) -> str:
        """Queue a study; its id."""
        body = Submission(settings=settings).model_dump(mode="json")
        return Submitted.model_validate(self._call("POST", STUDIES, json=body)).study_id

    def stop(self, study_id: str) -> None:
        """Ask for a study to be stopped."""
        self._call("POST", f"{STUDIES}/{study_id}/stop")

    def studies(self) -> list[StudyBrief]:
        """Every study, newest first."""
        return list(self._pages(STUDIES, Page[StudyBrief]))

    def study(self, study_id: str) -> StudyDetail:
        """One study in full."""
        return StudyDetail.model_validate(self._call("GET", f"{STUDIES}/{study_id}"))

    def nodes(self) -> list[NodeView]:
        """Every hospital."""
        return list(self._pages(NODES, Page[NodeView]))

    def events(self, study_id: str) -> list[Event]:
        """A study's whole history, oldest first."""
        pages: Iterator[EventView] = self._pages(EVENTS, Page[EventView], study=study_id)
        return [item.event for item in pages]

    def audit(self) -> list[AuditView]:
        """Who did what at the control plane, oldest first."""
        return list(self._pages(f"{API}/audit", Page[AuditView]))[::-1]

    def wait_until_ready(self, seconds: float) -> None:
        """Wait for it to serve requests.

        Raises:
            ControlPlaneError: it does not within `seconds`.
        """
        until = time.monotonic() + seconds
        while True:
            try:
                if self._client.get("/readyz").is_success:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > until:
                raise ControlPlaneError(
                    f"{self.address.url}: the control plane is not ready after {seconds:.0f} s",
                    hint="`fedward logs control-plane` says why",
                )
            time.sleep(0.1)

    def _pages(self, path: str, page: Any, **query: str) -> Iterator[Any]:
        after: str | None = None
        while True:
            params = {**query, "limit": str(PAGE), **({"after": after} if after else {})}
            part = page.model_validate(self._call("GET", path, params=params))
            yield from part.items
            after = part.next
            if after is None:
                return

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            token = self.address.token_file.read_text().split()[0]
        except (OSError, IndexError) as error:
            raise ControlPlaneError(
                f"{self.address.token_file}: cannot read the token file",
                hint="the control plane makes it at its first start: is it running?",
            ) from error
        try:
            response = self._client.request(
                method, path, headers={"authorization": f"Bearer {token}"}, **arguments
            )
        except httpx.HTTPError as error:
            raise ControlPlaneError(
                f"{self.address.url}: cannot reach the control plane: {error}",
                hint="`fedward up` starts a federation on this machine",
            ) from error
        if response.is_error:
            raise ControlPlaneError(f"{method} {path}: {_problem(response)}")
        return response.json() if response.content else None


def _problem(response: httpx.Response) -> str:
    try:
        problem = response.json()
        return str(problem.get("detail") or problem.get("title") or problem)
    except ValueError:
        return f"status {response.status_code}"
