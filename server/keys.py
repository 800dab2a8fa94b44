"""Which hospital a node key belongs to, following the registry file as it changes."""

import base64
import binascii
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from protocol.errors import SettingsError
from protocol.registry import load_registry

from ._flower import node_key_bytes

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # a revoked key is out within this time


@dataclass(frozen=True)
class KnownNode:
    """Whose key it is, and since when it is refused."""

    site: str
    revoked_at: datetime | None = None


class NodeKeys:
    """The enrolled hospitals' node keys, as the Fleet API's header carries them."""

    def __init__(self, registry: Path) -> None:
        self._path = registry
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at = 0.0
        self._nodes: dict[bytes, KnownNode] = {}

    def node_of(self, header: bytes | None) -> KnownNode | None:
        """The hospital whose key is in `header`, revoked or not; None for anybody else."""
        if not header or len(header) > 4096:
            return None
        self._refresh()
        try:
            return self._nodes.get(base64.b64decode(header, validate=True))
        except (binascii.Error, ValueError):
            return None

    def _refresh(self) -> None:
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if stamp == self._stamp:
                return
            self._nodes = {
                node_key_bytes(site): KnownNode(name, site.revoked_at)
                for name, site in load_registry(self._path).sites.items()
            }
            self._stamp = stamp
        except (OSError, ValueError, SettingsError) as error:
            # A registry that is being edited must not shut every hospital out.
            log.warning("the hospitals known before stay enrolled: %s", error)
