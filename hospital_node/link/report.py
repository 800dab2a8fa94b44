"""Tells the aggregator how the node is, while a round runs and between rounds.

The trainer signs a fixed record of numbers; this passes it on to the one address a hospital may
reach. Nobody connects to the hospital for it, and a lost report costs nothing: the next one says
more.
"""

import logging
import ssl
import threading

import httpx

from protocol.control import SITE_PROGRESS
from protocol.envelope import Envelope
from protocol.framing import Kind, frame
from protocol.site import SiteSettings

from .trainer_client import status, trainer_of

log = logging.getLogger("fedward.link")


class Reporter(threading.Thread):
    """Posts the trainer's progress every `report_seconds` until stopped."""

    def __init__(self, site: SiteSettings) -> None:
        super().__init__(name="reporter", daemon=True)
        self._trainer = trainer_of(site.trainer)
        self._every = site.link.report_seconds
        self._url = f"https://{site.aggregator.address}{SITE_PROGRESS}"
        context = ssl.create_default_context(cafile=str(site.aggregator.ca_certificate))
        self._client = httpx.Client(verify=context, timeout=10.0)
        self._ended = threading.Event()
        self._told = ""

    def run(self) -> None:
        """Report until stopped; say a trouble once, not every two seconds."""
        while not self._ended.wait(self._every):
            progress = status(self._trainer)
            trouble = "the trainer does not answer" if progress is None else self._post(progress)
            if trouble != self._told:
                log.warning("progress report: %s", trouble or "works again")
                self._told = trouble

    def stop(self) -> None:
        """End the thread after the report under way."""
        self._ended.set()

    def _post(self, progress: Envelope) -> str:
        try:
            response = self._client.post(self._url, content=frame(Kind.PROGRESS, progress))
        except httpx.HTTPError as error:
            return f"cannot reach {self._url}: {error}"
        if response.is_error:
            return f"{self._url} answers {response.status_code}: {response.text[:200]}"
        return ""
