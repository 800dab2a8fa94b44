"""Runs an app the way Flower's documentation does: SuperLink, SuperNodes, `flwr run`; TLS and keys.

Only the parts that the comparison needs; nothing of fedward's node or server is in it.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from certs.local import FederationPaths, make_federation
from protocol.flower import environment

APP = Path(__file__).parent / "flowertune_app"
BIN = Path(sys.executable).parent


def rounds(
    folder: Path, base: Path, data: Sequence[Path], *, count: int, steps: int, batch_size: int
) -> list[dict[str, float]]:
    """Run `count` rounds over one site for each data file; each round's wall and training seconds.

    Raises:
        RuntimeError: the run did not produce its result; the logs are in `folder`.
    """
    names = [f"site-{index}" for index in range(len(data))]
    paths = make_federation(folder / "certs", names)
    results = folder / "usual.json"
    config = {
        "num-server-rounds": count,
        "min-nodes": len(data),
        "base": str(base),
        "steps": steps,
        "batch-size": batch_size,
        "results": str(results),
    }
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_superlink(folder, paths))
        for name, file in zip(names, data, strict=True):
            stack.enter_context(_supernode(folder, paths, name, port, file))
        _run(folder, config)
        until = time.monotonic() + 1200
        while not results.exists():
            if time.monotonic() > until:
                raise RuntimeError(f"no result after 20 minutes; see the logs in {folder}")
            time.sleep(0.5)
        return list(json.loads(results.read_text()))


@contextlib.contextmanager
def _process(folder: Path, name: str, command: list[str], **extra: str) -> Iterator[None]:
    home = folder / "homes" / name
    home.mkdir(parents=True, exist_ok=True)
    env = environment(home, {"PATH": f"{BIN}:{os.environ['PATH']}", **extra})
    # the usual way has Flower's own intervals and chunk size
    for ours in ("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"):
        env.pop(ours)
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def _superlink(folder: Path, paths: FederationPaths) -> Iterator[int]:
    port = _free_port()
    tls = paths.aggregator
    command = [
        "flower-superlink", "--host", "127.0.0.1", "--port", str(port),
        "--ssl-ca-certfile", str(tls.ca), "--ssl-certfile", str(tls.cert),
        "--ssl-keyfile", str(tls.key), "--enable-supernode-auth",
        "--database", str(folder / "state.db"), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with _process(folder, "superlink", command, OMP_NUM_THREADS="1"):
        _wait_for(port)
        home = folder / "homes" / "cli"
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "lab"\n\n[superlink.lab]\naddress = "127.0.0.1:{port}"\n'
            f'root-certificates = "{tls.ca}"\n'
        )
        for name, site in paths.sites.items():
            _flwr(folder, "supernode", "register", str(site.node_public), "--name", name)
        yield port


def _supernode(
    folder: Path, paths: FederationPaths, name: str, superlink: int, data: Path
) -> contextlib.AbstractContextManager[None]:
    command = [
        "flower-supernode", "--superlink", f"127.0.0.1:{superlink}", "--port", str(_free_port()),
        "--root-certificates", str(paths.aggregator.ca),
        "--auth-supernode-private-key", str(paths.sites[name].node_key),
    ]  # fmt: skip
    return _process(folder, name, command, FLOWERTUNE_DATA=str(data), OMP_NUM_THREADS="1")


def _run(folder: Path, config: dict[str, object]) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in config.items()]
    _flwr(folder, "run", str(APP), "--run-config", " ".join(words))


def _flwr(folder: Path, *arguments: str) -> None:
    env = environment(folder / "homes" / "cli", {"PATH": f"{BIN}:{os.environ['PATH']}"})
    done = subprocess.run(
        [str(BIN / "flwr"), *arguments], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"flwr {' '.join(arguments)}: {done.stdout}{done.stderr}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    until = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > until:
            raise RuntimeError(f"nothing listens on port {port} after 60 s")
        time.sleep(0.1)
