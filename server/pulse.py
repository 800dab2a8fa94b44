"""When each hospital's node last asked for work, as the guard saw it.

A SuperNode handles one message at a time and asks for the next only when it is free. So one that
has been asking since it was given a request, and has not answered it, does not have it any more.
Flower says nothing of the kind: a node's heartbeats go on whatever happens to its messages.
"""

import logging
import ssl
from collections.abc import Mapping

import httpx

from protocol.errors import SettingsError

from .guard import WIRE_PATH
from .secrets import read_secret
from .settings import AggregatorSettings

log = logging.getLogger(__name__)


class Pulse:
    """Reads the guard's counters; an answer that does not come is no news."""

    def __init__(self, settings: AggregatorSettings) -> None:
        self._settings = settings
        self._client = httpx.Client(
            base_url=f"https://{settings.private_address}",
            verify=ssl.create_default_context(cafile=settings.tls.ca),
            timeout=2.0,
            trust_env=False,
        )

    def __call__(self) -> Mapping[str, float]:
        """Site to unix seconds of its last question; without those that have not asked."""
        try:
            token = read_secret(self._settings.control_token)
            response = self._client.get(WIRE_PATH, headers={"authorization": f"Bearer {token}"})
            response.raise_for_status()
            sites: dict[str, dict[str, float | None]] = response.json()["sites"]
        except (httpx.HTTPError, SettingsError, ValueError, KeyError) as error:
            log.debug("no pulse: %s", error)
            return {}
        pulses = {site: counted.get("last_pull_at") for site, counted in sites.items()}
        return {site: at for site, at in pulses.items() if at is not None}
