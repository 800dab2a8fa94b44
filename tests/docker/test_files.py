"""What the compose files and the Dockerfile must not say. No engine is needed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from stack import ROOT

# compose.gpu.yaml only adds a GPU to what compose.hospital.yaml says.
FILES = sorted(set(ROOT.glob("compose*.yaml")) - {ROOT / "compose.gpu.yaml"})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_insecure_is_written_in_a_compose_file(file: Any) -> None:
    text = file.read_text()
    for word in ("--insecure", "privileged", "network_mode: host", "pid: host", ":latest"):
        assert word not in text
    assert not re.search(r"(?i)password:\s*\S", text)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_service_is_hardened_and_bounded(file: Any) -> None:
    for name, service in _services(file).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"] not in {"0", "root", "0:0"}, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["mem_limit"], name
        assert service["cpus"], name
        assert service["pids_limit"], name
        assert service["logging"]["options"]["max-size"], name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_trainer_has_no_network_in_any_compose_file(file: Any) -> None:
    trainers = [name for name in _services(file) if name.endswith("trainer")]
    for name in trainers:
        assert _services(file)[name]["network_mode"] == "none"
        assert "ports" not in _services(file)[name]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_ports_are_published_on_loopback_and_for_few(file: Any) -> None:
    for name, service in _services(file).items():
        for port in service.get("ports", []):
            assert name in {"edge", "control-plane", "grafana"}
            assert str(port).startswith("${FEDWARD_BIND:-127.0.0.1}:")


def test_the_images_version_is_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert set(re.findall(r"ARG VERSION=(\S+)", text)) == {version}


def test_the_dockerfile_needs_no_frontend_and_no_root() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert "# syntax=" not in text
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)
    running = [stage for stage in stages if "ENTRYPOINT" in stage]
    assert len(running) == 6
    for stage in running:
        assert "USER 10001:10001" in stage
        assert "org.opencontainers.image.title" in stage


def test_hadolint_finds_nothing() -> None:
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "hadolint is not installed: make dev"
    done = subprocess.run([found, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_registry_is_asked_for_our_images(file: Any) -> None:
    """Compose pulls before it builds, and nobody knows who owns a name in a public registry."""
    for name, service in _services(file).items():
        ours = service["image"].startswith("fedward/")
        assert service["pull_policy"] == ("never" if ours else "missing"), name


def test_grafana_starts_with_our_boards_our_data_source_and_no_default_password() -> None:
    """All but Grafana itself: what it is given is there, and says where its data is."""
    grafana = _services(ROOT / "compose.yaml")["grafana"]
    mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"] if mount.startswith("./"))
    by_target = {target: ROOT / source for source, target in mounts.items()}
    provisioning = Path("/etc/grafana/provisioning")
    sources = yaml.safe_load(by_target[f"{provisioning}/datasources/fedward.yml"].read_text())
    (source,) = sources["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "https://prometheus:9090")
    assert source["jsonData"]["tlsAuth"] is True
    assert source["jsonData"]["tlsAuthWithCACert"] is True
    boards = yaml.safe_load((by_target[f"{provisioning}/dashboards"] / "fedward.yml").read_text())[
        "providers"
    ][0]["options"]["path"]
    files = list(by_target[boards].glob("*.json"))
    assert len(files) == 4
    for file in files:
        chosen = json.loads(file.read_text())["templating"]["list"]
        assert ("datasource", source["type"]) in [(one["type"], one.get("query")) for one in chosen]
    settings = grafana["environment"]
    assert settings["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/etc/fedward/grafana.password"
    assert settings["GF_SERVER_PROTOCOL"] == "https"
    assert grafana["depends_on"] == {"prometheus": {"condition": "service_healthy"}}


def test_every_locked_requirement_has_a_hash() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        text = file.read_text().replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
        assert lines
        assert all("--hash=sha256:" in line for line in lines), file


def test_only_the_trainers_sets_hold_torch() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        named = re.search(r"^torch==", file.read_text(), flags=re.MULTILINE) is not None
        assert named == (file.stem in {"trainer-cuda", "trainer-cpu-torch"}), file


def _services(file: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["services"]
    return {name: service for name, service in found.items() if "extends" not in service}
