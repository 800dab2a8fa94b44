"""Which hospitals of the study are online, and which key checks whose replies."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from protocol.errors import SettingsError
from protocol.registry import load_registry

from ._flower import node_key_bytes

log = logging.getLogger(__name__)


class NodeSource(Protocol):
    """The part of Flower's Grid that lists nodes."""

    def get_nodes(self) -> Iterable[Any]:
        """The nodes that are online (`NodeInfo`)."""


@dataclass(frozen=True)
class OnlineNode:
    """A hospital's node; `activated_at` changes when its process starts anew."""

    node_id: int
    activated_at: str


class Directory:
    """The study's hospitals by name. A hospital that is revoked leaves it at once."""

    def __init__(self, nodes: NodeSource, registry: Path, sites: Iterable[str]) -> None:
        """`sites`: the study's; none means every enrolled one."""
        self._nodes, self._path = nodes, registry
        self._asked = frozenset(sites)
        self._registry = load_registry(registry)

    @property
    def sites(self) -> list[str]:
        """The study's hospitals that are enrolled and not revoked, in order of name."""
        self._refresh()
        return sorted(
            name for name in self._registry.active() if not self._asked or name in self._asked
        )

    def online(self) -> dict[str, OnlineNode]:
        """The study's hospitals whose node is online now."""
        known = {node_key_bytes(self._registry.sites[name]): name for name in self.sites}
        return {
            known[node.public_key]: OnlineNode(node.node_id, node.last_activated_at)
            for node in self._nodes.get_nodes()
            if node.public_key in known
        }

    def revoked(self, sites: Iterable[str]) -> set[str]:
        """Those of `sites` that are shut out by now: what they send counts no more."""
        wanted = set(sites)
        if not wanted:
            return set()
        self._refresh()
        return wanted - self._registry.active().keys()

    def verify_key(self, site: str) -> Ed25519PublicKey:
        """The key that signs this hospital's replies."""
        return self._registry.sites[site].verify_key

    def _refresh(self) -> None:
        try:
            self._registry = load_registry(self._path)
        except SettingsError as error:
            log.warning("the hospitals known before stay enrolled: %s", error)
