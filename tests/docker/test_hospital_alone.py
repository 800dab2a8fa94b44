"""An aggregator alone and an institution that joins it: two projects that share nothing but a port.

As in docs/deployment.md: the hospital makes its own keys, the coordinator approves them, and the
hospital's compose file needs its folder, its rows and its base model.
"""

import json
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
from stack import Stack, docker

from fedward.demo import MODEL
from fedward.embedded.corpus import write_hospital_data

PORT = "48443"
STUDY = {
    "name": "alone",
    "model": {"base": "/model", "quantization": "nf4"},
    "adapter": {"rank": 4, "alpha": 8},
    "training": {"steps": 10, "batch_size": 8, "learning_rate": 1e-3, "max_length": 128},
    "rounds": {"count": 3, "minimum_sites": 1, "deadline_seconds": 300, "join_seconds": 300},
}


@dataclass
class Institution:
    """A hospital: a folder on a machine of its own."""

    home: Path
    stack: Stack

    def fedward(self, *words: str) -> str:
        """The command line, in the hospital's folder, with its version of the images."""
        return docker(
            "run", "--rm", "--network", "none", "-v", f"{self.home}:/home", "-w", "/home",
            "--entrypoint", "python", "-e", "TERM=dumb", "fedward/cli:0.1.0-test",
            "-m", "fedward", *words,
        )  # fmt: skip


@pytest.fixture(scope="module")
def coordinator(images: float) -> Iterator[Stack]:
    """compose.aggregator.yaml, reached as hospitals would: through the machine's own address."""
    gateway = "{{(index .IPAM.Config 0).Gateway}}"
    address = docker("network", "inspect", "bridge", "-f", gateway).strip()
    environment = {
        "COMPOSE_FILE": "compose.aggregator.yaml",
        "FEDWARD_NAMES": address,
        "FEDWARD_BIND": address,
        "FEDWARD_EDGE_PORT": PORT,
        "FEDWARD_UI_PORT": "49443",
    }
    services = ("aggregator", "alertmanager", "control-plane", "edge", "prometheus", "renewals")
    stack = Stack("fedward-alone", environment=environment, services=services)
    stack.down()
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


@pytest.fixture
def institution(coordinator: Stack, tmp_path: Path) -> Iterator[Institution]:
    """Its folders, and nothing of it started."""
    written = write_hospital_data(tmp_path / "data", ["st-mary"])
    shutil.copytree(MODEL, tmp_path / "model")
    (tmp_path / "site").mkdir()
    for folder in (tmp_path, tmp_path / "site"):
        folder.chmod(0o777)
    environment = {
        "COMPOSE_FILE": "compose.hospital.yaml",
        "HOSPITAL_SITE": str(tmp_path / "site"),
        "HOSPITAL_DATA": str(written.train["st-mary"].parent),
        "HOSPITAL_MODEL": str(tmp_path / "model"),
        "HOSPITAL_CPUS": "2",
        "HOSPITAL_MEMORY": "4g",
    }
    stack = Stack("fedward-st-mary", environment=environment, services=("link", "trainer"))
    try:
        yield Institution(tmp_path, stack)
    finally:
        stack.down()


def test_an_institution_enrols_and_takes_part(coordinator: Stack, institution: Institution) -> None:
    made = json.loads(institution.fedward("node", "enrol", "st-mary", "--keys", "site", "--json"))
    coordinator.compose(
        "run", "--rm", "-T", "-v", f"{institution.home}/site:/work", "-w", "/work", "certs",
        "approve", "request.json", "--fingerprint", made["fingerprint"],
        "--aggregator", f"{coordinator.environment['FEDWARD_NAMES']}:{PORT}",
    )  # fmt: skip
    institution.fedward(
        "node", "install", "site/st-mary-bundle.json", "--keys", "site",
        "--site-toml", "site/site.toml", "--train", "/data/train.jsonl",
    )  # fmt: skip
    settings = tomllib.loads((institution.home / "site" / "site.toml").read_text())
    assert settings["data"]["train"] == ["/data/train.jsonl"]
    seconds = institution.stack.up()
    print(f"\nan enrolled hospital is well {seconds:.0f} s after `docker compose up -d`")

    study = institution.home / "study.toml"
    study.write_text(tomli_w.dumps(STUDY))
    told = coordinator.compose(
        "run", "--rm", "-T", "-v", f"{study}:/study.toml:ro", "cli", "run", "/study.toml"
    )
    assert "finished, round 3 of 3" in told
    sites = {
        site["site"]: site for site in coordinator.study(coordinator.newest()["study_id"])["sites"]
    }
    assert sites["st-mary"]["rounds_ok"] == 3
    _goes_out_to_one_place(institution.stack, coordinator.environment["FEDWARD_NAMES"])


def _goes_out_to_one_place(stack: Stack, address: str) -> None:
    """The link's every connection leads to the edge; nothing is published; a trainer has none."""
    table = Path(f"/proc/{stack.container('link')['State']['Pid']}/net/tcp")
    peers = set()
    for line in table.read_text().splitlines()[1:]:
        _, _, remote, state, *_ = line.split()
        host, port = remote.split(":")
        peer = ".".join(str(byte) for byte in reversed(bytes.fromhex(host)))
        if state == "01" and not peer.startswith("127."):
            peers.add((peer, int(port, 16)))
    assert peers == {(address, int(PORT))}
    for service in ("link", "trainer"):
        assert not stack.container(service)["NetworkSettings"]["Ports"]
    assert stack.container("trainer")["HostConfig"]["NetworkMode"] == "none"
