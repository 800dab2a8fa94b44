"""Flower's flags, environment and limits, spelled here and nowhere else.

Written against flwr 1.41 and its installed source. Flower changed its transport, flags and defaults
often, so whoever raises the version in pyproject.toml starts on this page.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Final

# An object (a chunk of an array) must cross the link within Flower's 30 s read timeout. At its
# default of 5 MB a 1 Mbit/s uplink never finishes; at 512 KiB it does, in 118 s for 12 MB.
CHUNK_BYTES: Final = 512 << 10

# The largest body a Fleet request can have: one object (5.3 MB at Flower's own chunk size, far less
# at ours). Flower reads and parses bodies before it authenticates, so this is also what an unknown
# peer can make the SuperLink hold.
MAX_FLEET_BODY_BYTES: Final = 16 << 20

# How soon an object that has not arrived yet is asked for again.
PULL_AGAIN_SECONDS: Final = 0.05

# Flower's node statuses go offline 60 s after the last heartbeat.
NODE_TIMEOUT_SECONDS: Final = 60.0

# What the Fleet API needs to be reachable from hospitals; anything else on the port is refused.
FLEET_ROUTES: Final = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)


def environment(home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a Flower process: its own FLWR_HOME, no call home, no installation.

    `HTTP_PROXY` is kept for the way out of a hospital, but must not capture loopback: Flower's
    HTTP client honours it, and a SuperExec behind a proxy then retries for ever unheard.
    """
    env = dict(os.environ)
    loopback = ["127.0.0.1", "localhost", "::1"]
    for name in ("NO_PROXY", "no_proxy"):
        known = [host for host in env.get(name, "").split(",") if host]
        env[name] = ",".join(known + [host for host in loopback if host not in known])
    env.update(
        FLWR_HOME=str(home),
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
        FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE=str(CHUNK_BYTES),
        FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.05",
        PYTHONUNBUFFERED="1",
    )
    env.update(extra or {})
    return env


def superlink_arguments(
    *, host: str, port: int, ca: Path, cert: Path, key: Path, database: Path, secret: Path
) -> list[str]:
    """Flags of `flower-superlink`: TLS, node authentication, state on disk, process isolation.

    In `process` isolation a SuperLink that is killed and restarted on the same database goes on
    with the run; in `subprocess` isolation the run fails and the task queue is open to anyone.
    """
    return [
        "--host", host, "--port", str(port),
        "--ssl-ca-certfile", str(ca), "--ssl-certfile", str(cert), "--ssl-keyfile", str(key),
        "--enable-supernode-auth",
        "--database", str(database),
        "--isolation", "process",
        "--superexec-auth-secret-file", str(secret),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def superexec_arguments(*, runtime_api: str, ca: Path, secret: Path) -> list[str]:
    """Flags of `flower-superexec`, for either side."""
    return [
        "--runtime-api-address", runtime_api,
        "--root-certificates", str(ca),
        "--superexec-auth-secret-file", str(secret),
    ]  # fmt: skip


def supernode_arguments(
    *,
    superlink: str,
    ca: Path,
    node_key: Path,
    port: int,
    runtime_ca: Path,
    runtime_cert: Path,
    runtime_key: Path,
    secret: Path,
) -> list[str]:
    """Flags of `flower-supernode`: authenticated, Runtime API on loopback with TLS."""
    return [
        "--superlink", superlink,
        "--root-certificates", str(ca),
        "--auth-supernode-private-key", str(node_key),
        "--isolation", "process",
        "--host", "127.0.0.1", "--port", str(port),
        "--ssl-ca-certfile", str(runtime_ca),
        "--ssl-certfile", str(runtime_cert),
        "--ssl-keyfile", str(runtime_key),
        "--superexec-auth-secret-file", str(secret),
    ]  # fmt: skip


# A Flower error reply is a free text. Ours hold one of our reason codes behind this prefix, because
# an exception's own text could quote a patient record.
ERROR_PREFIX: Final = "fedward:"


def replace(module: ModuleType, name: str, value: object) -> None:
    """Put `value` in place of a name inside one of Flower's modules.

    Raises:
        RuntimeError: the module has no such name, so this is not the version we were written for.
    """
    if not hasattr(module, name):
        raise RuntimeError(
            f"{module.__name__} has no {name!r}: fedward was written against flwr 1.41, "
            "and another version is installed"
        )
    setattr(module, name, value)


def pull_soon(module: ModuleType, name: str) -> None:
    """Make one of Flower's object-pulling functions look again after 0.05 s instead of 1 s.

    A message is announced before its objects have arrived, so who is quick finds some missing and
    waits: with Flower's first wait of 1 s, doubled each time, that was 1 to 3 s of most rounds (at
    the node, at its ClientApp and at the aggregator). The waits still double, up to Flower's 10 s.
    """
    replace(module, name, partial(getattr(module, name), initial_backoff=PULL_AGAIN_SECONDS))
