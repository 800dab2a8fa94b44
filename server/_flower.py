"""Everything private of flwr 1.41 that the aggregator uses, in one place.

The SuperLink has no public way to stand behind a guard, and the Control API has no public client;
the names below are internal and were read in the installed source. Whoever raises the version in
pyproject.toml checks this module and `protocol/flower.py`, and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from protocol.errors import FedwardError
from protocol.registry import EnrolledSite

if TYPE_CHECKING:
    from fastapi import FastAPI

KEY_HEADER: Final = b"flwr-public-key"  # supercore.constant.FLEET_HTTP_PUBLIC_KEY_HEADER
PROTOBUF: Final = "application/protobuf"


class ControlError(FedwardError):
    """The SuperLink's Control API refused, or could not be reached."""

    exit_code = 4


def superlink_app(arguments: list[str]) -> FastAPI:
    """Flower's own ASGI application, exactly as `flower-superlink` with `arguments` makes it."""
    from flwr.superlink.main import create_app

    # The package re-exports a function under the module's name, hence importlib.
    module = importlib.import_module("flwr.superlink.cli.flower_superlink")
    saved = sys.argv
    sys.argv = ["flower-superlink", *arguments]
    try:
        config = module._parse_superlink_lifespan_config()
    finally:
        sys.argv = saved
    return create_app(config, module.SuperLinkLifespan)


def run_superexec(arguments: list[str]) -> None:
    """Flower's SuperExec in this process; returns or exits when it ends."""
    from flwr.supercore.cli import flower_superexec

    sys.argv = ["flower-superexec", *arguments]
    flower_superexec()


def node_key_bytes(site: EnrolledSite) -> bytes:
    """A site's node key as Flower stores it: SubjectPublicKeyInfo in PEM."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_public_key,
    )

    key = load_ssh_public_key(site.node_public_key.encode())
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def build_fab(folder: Path) -> bytes:
    """The Flower app bundle made of `folder`."""
    from flwr.cli.build import build_fab_from_disk

    return build_fab_from_disk(folder)


@dataclass(frozen=True)
class FlowerNode:
    """One registered SuperNode."""

    node_id: int
    name: str
    status: str
    public_key: bytes
    last_heartbeat_at: float | None


@dataclass(frozen=True)
class FlowerRun:
    """One run: Flower's own status, which says nothing about success."""

    run_id: int
    status: str  # pending, starting, running, finished
    sub_status: str
    bytes_in: int  # from nodes, serialized messages and objects, all nodes together
    bytes_out: int


class ControlClient:
    """The few Control API calls that the supervisor makes, with its bearer token."""

    def __init__(self, address: str, ca: Path, token: str) -> None:
        from flwr.supercore.control import ControlHttpClient

        class _Bearer:
            def intercept(self, context: Any, call_next: Any) -> httpx.Response:
                context.request.headers["authorization"] = f"Bearer {token}"
                response: httpx.Response = call_next(context)
                return response

        self._client = ControlHttpClient.from_server_address(
            address, False, ca.read_bytes(), interceptors=[_Bearer()]
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def nodes(self) -> list[FlowerNode]:
        """All nodes that are registered."""
        from flwr.proto.control_pb2 import ListNodesRequest

        reply = self._call("ListNodes", ListNodesRequest())
        return [
            FlowerNode(
                node_id=info.node_id,
                name=info.name,
                status=info.status,
                public_key=info.public_key,
                # online_until is the last heartbeat plus two intervals
                last_heartbeat_at=info.online_until - 2 * info.heartbeat_interval
                if info.HasField("online_until") and info.online_until > 0
                else None,
            )
            for info in reply.nodes_info
        ]

    def register(self, name: str, public_key: bytes) -> None:
        """Let a node with this key in."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        self._call("RegisterNode", RegisterNodeRequest(public_key=public_key, name=name))

    def unregister(self, node_id: int) -> None:
        """Shut a node out; a running SuperNode then ends."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        self._call("UnregisterNode", UnregisterNodeRequest(node_id=node_id))

    def start(self, fab: bytes, run_config: dict[str, Any]) -> int:
        """Submit a run; returns its id."""
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        reply = self._call(
            "StartRun",
            StartRunRequest(
                fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {})),
                override_config=user_config_to_proto(run_config),
            ),
        )
        if not reply.HasField("run_id"):
            raise ControlError("the SuperLink did not accept the run; its log says why")
        return int(reply.run_id)

    def stop(self, run_id: int) -> None:
        """Stop a run; one that has ended is left as it is."""
        from flwr.proto.control_pb2 import StopRunRequest

        self._call("StopRun", StopRunRequest(run_id=run_id))

    def run(self, run_id: int) -> FlowerRun | None:
        """What Flower says of a run; None where it does not know it."""
        from flwr.proto.control_pb2 import ListRunsRequest

        reply = self._call("ListRuns", ListRunsRequest(run_id=run_id))
        if run_id not in reply.run_dict:
            return None
        run = reply.run_dict[run_id]
        return FlowerRun(
            run_id=run_id,
            status=run.status.status,
            sub_status=run.status.sub_status,
            bytes_in=run.bytes_recv,
            bytes_out=run.bytes_sent,
        )

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._client, method)(request)
        except httpx.HTTPStatusError as error:
            raise ControlError(
                f"the SuperLink answered {error.response.status_code} to {method}: "
                f"{error.response.text[:200]}"
            ) from error
        except (httpx.HTTPError, ValueError, OSError) as error:
            raise ControlError(f"the SuperLink cannot be reached for {method}: {error}") from error
