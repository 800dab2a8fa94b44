"""What the issue of a newcomer is: a fresh clone, one command, a study over two hospitals.

Before every other test here, so that nothing else is running: what it prints are the times that
docs/deployment.md may quote.
"""

import json
import subprocess
import time
from collections.abc import Iterator

import pytest
from stack import ROOT, SERVICES, Stack, docker

# Runs on a network of the topology: is it TLS, and is anything answered without it?
SPEAK = """
import json, socket, ssl, sys
found = {}
for target in sys.argv[1:]:
    host, port = target.split(":")
    context = ssl.create_default_context(cafile="/keys/ca.crt")
    context.load_cert_chain("/keys/operator.crt", "/keys/operator.key")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            version = secure.version()
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        plain.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        try:
            answer = plain.recv(4096)
        except OSError:
            answer = b""
    found[target] = [version, answer.decode(errors="replace").split("\\r\\n")[0]]
print(json.dumps(found))
"""
NETWORKS = {
    "core": ("aggregator", "control-plane", "edge"),
    "monitoring": ("alertmanager", "control-plane", "edge", "prometheus"),
    "hospital-a": ("edge", "hospital-a-link"),
    "hospital-b": ("edge", "hospital-b-link"),
}


@pytest.fixture(scope="module")
def fresh(images: float, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A clone of what is committed, and nothing of it started yet."""
    folder = tmp_path_factory.mktemp("clone") / "fedward"
    done = subprocess.run(
        ["git", "clone", "--quiet", str(ROOT), str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"not a git checkout: {done.stderr.decode()}")
    environment = {"FEDWARD_UI_PORT": "29443", "FEDWARD_EDGE_PORT": "28443"}
    stack = Stack("fedward-clone", folder, environment)
    stack.down()
    try:
        yield stack
    finally:
        stack.down()


def test_from_a_fresh_clone_one_command_makes_a_federation_that_has_trained(
    fresh: Stack, images: float
) -> None:
    """Five minutes, images built, volumes cold; on a machine that does nothing else."""
    begin = time.monotonic()
    healthy = fresh.up()
    fresh.wait(lambda: bool(fresh.api("studies")), 120, "the first study")
    study = fresh.wait_finished(fresh.newest()["study_id"], 900)
    finished = time.monotonic() - begin
    assert study["rounds_done"] == study["rounds_total"] >= 5
    assert {site["site"] for site in study["sites"]} == {"hospital-a", "hospital-b"}
    assert all(site["rounds_ok"] == study["rounds_done"] for site in study["sites"])
    rounds = _rounds_in_prometheus(fresh, study)
    listeners = {name: fresh.listeners(name) for name in SERVICES}
    print(
        f"\nfrom a fresh clone: images built in {images:.0f} s (from the cache, where there is one)"
        f"\n`docker compose up -d`: all {len(SERVICES)} services well after {healthy:.0f} s"
        f"\nstudy of {study['rounds_done']} rounds over 2 hospitals finished after {finished:.0f} s"
        f"\nPrometheus' API: fedward_rounds_total is {rounds:.0f}"
    )
    for name, (networks, loopback) in listeners.items():
        print(f"{name} listens on {sorted(networks)}, {len(loopback)} on its own loopback")
    assert finished < 300


def test_nothing_listens_without_tls_on_any_network(fresh: Stack) -> None:
    """Every port that the kernel knows of, asked in the clear and over TLS, from its own network.

    Loopback inside one container is the boundary within which there may be none.
    """
    image = fresh.container("renewals")["Image"]
    listening = {name: fresh.listeners(name)[0] for name in SERVICES}
    assert sum(map(len, listening.values())) == 6
    asked = set()
    for network, services in NETWORKS.items():
        targets = [f"{name}:{port}" for name in services for port in listening[name]]
        found = json.loads(
            docker(
                "run", "--rm", "--network", f"{fresh.project}_{network}",
                "-v", f"{fresh.project}_monitoring-config:/keys:ro",
                "--entrypoint", "python", image, "-c", SPEAK, *targets,
            )
        )  # fmt: skip
        for target, (version, answer) in found.items():
            assert version in {"TLSv1.2", "TLSv1.3"}, target
            assert not answer or " 400 " in answer, (target, answer)
            print(f"{network}: {target} {version}, in the clear: {answer or 'closed'}")
        asked |= {target.split(":")[0] for target in found}
    assert asked == {name for name, ports in listening.items() if ports}


def _rounds_in_prometheus(stack: Stack, study: dict[str, object]) -> float:
    """Once it has scraped the last of them."""
    expression = f'sum(fedward_rounds_total{{study="{study["study_id"]}"}})'

    def rounds() -> float:
        return sum(float(row["value"][1]) for row in stack.prometheus(expression))

    stack.wait(lambda: rounds() == study["rounds_done"], 60, "every round in Prometheus")
    return rounds()
