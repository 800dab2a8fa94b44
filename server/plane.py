"""The aggregator's side of the control plane: it tells and asks, and is never called."""

import ssl
from collections.abc import Sequence

import httpx
from pydantic import TypeAdapter, ValidationError

from protocol.control import COMMANDS, INGEST_EVENTS, INGEST_NODES, Command, NodeSnapshot
from protocol.errors import FedwardError
from protocol.events import EVENTS, Event

from .secrets import read_secret
from .settings import ControlPlaneSettings

SECONDS = 10.0

_COMMANDS: TypeAdapter[list[Command]] = TypeAdapter(list[Command])
_NODES: TypeAdapter[list[NodeSnapshot]] = TypeAdapter(list[NodeSnapshot])


class PlaneError(FedwardError):
    """The control plane cannot be reached, or did not take what it was sent."""

    exit_code = 4


class SequenceGapError(PlaneError):
    """The control plane lacks events before those it was sent; `expected` is the first of them."""

    def __init__(self, message: str, expected: int) -> None:
        super().__init__(message)
        self.expected = expected


class ControlPlane:
    """An HTTPS client with the role of the aggregator."""

    def __init__(self, settings: ControlPlaneSettings) -> None:
        self._settings = settings
        self._client = httpx.Client(
            base_url=settings.url,
            verify=ssl.create_default_context(cafile=settings.ca),
            timeout=SECONDS,
            trust_env=False,  # HTTPS_PROXY is for the way out of the house, not for this
        )

    def send_events(self, events: Sequence[Event]) -> None:
        """Hand over events of one study in order; those it has are not doubled.

        Raises:
            SequenceGapError: it lacks earlier ones.
            PlaneError: it does not take them.
        """
        self._ask("POST", INGEST_EVENTS, EVENTS.dump_json(list(events), exclude_none=True))

    def send_nodes(self, nodes: Sequence[NodeSnapshot]) -> None:
        """Say how the nodes are."""
        self._ask("POST", INGEST_NODES, _NODES.dump_json(list(nodes), exclude_none=True))

    def commands(self, after: int) -> list[Command]:
        """What it wants done, from number `after` on."""
        answer = self._ask("GET", f"{COMMANDS}?after={after}")
        try:
            return _COMMANDS.validate_json(answer)
        except ValidationError as error:
            raise PlaneError(f"the control plane's commands are malformed: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {
            "authorization": f"Bearer {read_secret(self._settings.token)}",
            "content-type": "application/json",
        }
        try:
            response = self._client.request(method, path, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise PlaneError(f"{self._settings.url} cannot be reached: {error}") from error
        if response.is_error:
            words = (
                f"{self._settings.url}{path} answers {response.status_code}: {response.text[:200]}"
            )
            expected = _expected(response)
            raise SequenceGapError(words, expected) if expected else PlaneError(words)
        return response.content


def _expected(response: httpx.Response) -> int | None:
    """Which event the control plane wants first; None where that is not what is wrong."""
    if response.status_code != 409:
        return None
    try:
        problem = response.json()
        known = problem["type"].endswith(":sequence-gap")
        return max(1, int(problem["expected_seq"])) if known else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
