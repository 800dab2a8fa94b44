"""The registry's hospitals in the SuperLink, and how their nodes are."""

import logging
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx

from protocol.control import NodeSnapshot
from protocol.registry import EnrolledSite, load_registry

from ._flower import ControlClient, ControlError, FlowerNode, node_key_bytes
from .guard import WIRE_PATH
from .plane import ControlPlane
from .settings import AggregatorSettings

log = logging.getLogger(__name__)

_STATUS = {"registered", "online", "offline", "unregistered"}


class NodeKeeper:
    """Lets enrolled hospitals in, shuts revoked ones out, and reports on all of them."""

    def __init__(
        self, settings: AggregatorSettings, control: ControlClient, plane: ControlPlane, token: str
    ) -> None:
        self._settings, self._control, self._plane = settings, control, plane
        self._wire = httpx.Client(
            base_url=f"https://{settings.private_address}",
            verify=ssl.create_default_context(cafile=settings.tls.ca),
            headers={"authorization": f"Bearer {token}"},
            timeout=5.0,
            trust_env=False,
        )
        self._failed: set[str] = set()

    def step(self) -> None:
        """Bring the SuperLink's list in line with the registry; report.

        Raises:
            ControlError: the SuperLink is away.
            PlaneError: the control plane is.
        """
        registry = load_registry(self._settings.registry)
        active = registry.active()
        nodes = {node.public_key: node for node in self._control.nodes()}
        if self._reconcile(active, nodes):
            nodes = {node.public_key: node for node in self._control.nodes()}
        self._plane.send_nodes(self._snapshots(registry.sites, nodes))

    def _reconcile(
        self, active: Mapping[str, EnrolledSite], nodes: Mapping[bytes, FlowerNode]
    ) -> bool:
        """Register and unregister; True if anything changed."""
        keys = {node_key_bytes(site): name for name, site in active.items()}
        changed = False
        for key, name in keys.items():
            known = nodes.get(key)
            if (known is None or known.status == "unregistered") and name not in self._failed:
                changed = self._register(name, key) or changed
        for key, node in nodes.items():
            if key not in keys and node.status != "unregistered":
                log.info("%s is no longer enrolled; its node is shut out", node.name)
                self._control.unregister(node.node_id)
                changed = True
        return changed

    def _register(self, name: str, key: bytes) -> bool:
        try:
            self._control.register(name, key)
        except ControlError as error:
            if "cannot be reached" in str(error):
                raise
            # Flower never takes a key twice, so asking again every two seconds helps nobody.
            log.error("%s cannot be registered: %s; it needs a new node key", name, error)
            self._failed.add(name)
            return False
        log.info("%s is registered with the SuperLink", name)
        return True

    def _snapshots(
        self, known: Mapping[str, EnrolledSite], nodes: Mapping[bytes, FlowerNode]
    ) -> list[NodeSnapshot]:
        """How each hospital's node is; a revoked one's too, for what it still tries is counted."""
        wire = self._read_wire()
        sites: dict[str, dict[str, Any]] = wire.get("sites", {})
        snapshots = []
        for name, site in sorted(known.items()):
            node = nodes.get(node_key_bytes(site))
            counted = sites.get(name, {})
            status = node.status if node and node.status in _STATUS else "unregistered"
            snapshots.append(
                NodeSnapshot(
                    site=name,
                    node_id=str(node.node_id) if node else "",
                    status=status,  # type: ignore[arg-type]
                    last_heartbeat_at=node.last_heartbeat_at if node else None,
                    last_pull_at=counted.get("last_pull_at"),
                    wire_bytes_in=counted.get("bytes_in", 0),
                    wire_bytes_out=counted.get("bytes_out", 0),
                    wire_epoch=wire.get("epoch", time.time()),
                    refused_requests=counted.get("refused", 0),
                )
            )
        return snapshots

    def _read_wire(self) -> dict[str, Any]:
        response = self._wire.get(WIRE_PATH)
        response.raise_for_status()
        counters: dict[str, Any] = response.json()
        return counters
