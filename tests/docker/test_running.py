"""What is true of the running containers: read from the engine and from inside, not from YAML."""

import json
from pathlib import Path

import pytest
from stack import SERVICES, Stack, compose

REACH = """
import json, socket, sys
found = {}
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        found[target] = "open"
    except OSError as error:
        found[target] = type(error).__name__
print(json.dumps(found))
"""


def test_every_service_is_well_and_a_study_of_eight_rounds_has_finished(stack: Stack) -> None:
    for service in SERVICES:
        assert stack.health(service) in {"healthy", "running"}, service
    study = stack.newest()
    assert study["state"] == "finished"
    assert study["rounds_done"] >= 5
    detail = stack.study(study["study_id"])
    assert {site["site"] for site in detail["sites"]} == {"hospital-a", "hospital-b"}


@pytest.mark.parametrize("service", SERVICES)
def test_no_container_is_root_or_may_become_it(stack: Stack, service: str) -> None:
    found = stack.container(service)
    host = found["HostConfig"]
    assert found["Config"]["User"].split(":")[0] not in {"", "0", "root"}
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["Privileged"] is False
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["PidMode"] == ""
    assert host["NetworkMode"] != "host"


@pytest.mark.parametrize("service", SERVICES)
def test_the_kernel_agrees_that_there_are_no_capabilities(stack: Stack, service: str) -> None:
    pid = stack.container(service)["State"]["Pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert "0" not in status["Uid"].split()


@pytest.mark.parametrize("service", SERVICES)
def test_every_root_is_read_only_and_every_container_is_bounded(stack: Stack, service: str) -> None:
    host = stack.container(service)["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["Memory"] > 0
    assert host["NanoCpus"] > 0
    assert host["PidsLimit"] > 0
    assert host["LogConfig"]["Config"]["max-size"] == "10m"
    assert host["RestartPolicy"]["Name"] == "unless-stopped"


def test_only_the_page_and_the_edge_are_published_and_on_loopback(stack: Stack) -> None:
    published = {}
    for service in SERVICES:
        for port, where in (stack.container(service)["NetworkSettings"]["Ports"] or {}).items():
            for binding in where or []:
                published[f"{service} {port}"] = binding["HostIp"]
    assert published == {"control-plane 9443/tcp": "127.0.0.1", "edge 8443/tcp": "127.0.0.1"}


def test_the_trainer_has_no_way_to_anything_but_its_link(stack: Stack) -> None:
    """No interface but loopback: names, the aggregator, a public address, the other hospital."""
    addresses = []
    for service in ("aggregator", "edge", "hospital-b-link"):
        networks = stack.container(service)["NetworkSettings"]["Networks"].values()
        port = {"aggregator": 9092, "edge": 8443}.get(service, 80)
        addresses += [f"{network['IPAddress']}:{port}" for network in networks]
    targets = [*addresses, "1.1.1.1:443", "8.8.8.8:53", "aggregator:9092", "pypi.org:443"]
    found = json.loads(stack.python("hospital-a-trainer", REACH, *targets))
    assert "open" not in found.values(), found
    interfaces = "import socket; print([name for _, name in socket.if_nameindex()])"
    names = stack.python("hospital-a-trainer", interfaces)
    assert "eth" not in names


def test_a_link_reaches_the_edge_and_nobody_else(stack: Stack) -> None:
    other = stack.container("hospital-b-link")["NetworkSettings"]["Networks"]
    core = stack.container("aggregator")["NetworkSettings"]["Networks"]
    targets = [f"{network['IPAddress']}:9092" for network in core.values()]
    targets += [f"{network['IPAddress']}:8443" for network in other.values()]
    found = json.loads(stack.python("hospital-a-link", REACH, "edge:8443", "1.1.1.1:443", *targets))
    assert found.pop("edge:8443") == "open"
    assert "open" not in found.values(), found


def test_a_link_has_no_data_no_torch_and_no_trainers_code(stack: Stack) -> None:
    code = """
import importlib.util, json, os
found = {name: importlib.util.find_spec(name) is not None
         for name in ("torch", "transformers", "peft", "bitsandbytes", "flwr")}
found["trainer"] = os.path.exists("/app/hospital_node/trainer")
found["data"] = os.path.exists("/data") or os.path.exists("/model")
found["signing"] = os.path.exists("/config/signing.key")
found["gpu"] = any(name.startswith("nvidia") for name in os.listdir("/dev"))
print(json.dumps(found))
"""
    found = json.loads(stack.python("hospital-a-link", code))
    assert found.pop("flwr") is True
    assert not any(found.values()), found
    mounts = {mount["Destination"] for mount in stack.container("hospital-a-link")["Mounts"]}
    assert mounts == {"/config", "/state", "/run/fedward"}


def test_a_trainer_can_change_neither_its_data_nor_its_model(stack: Stack) -> None:
    mounts = {
        mount["Destination"]: mount["RW"]
        for mount in stack.container("hospital-a-trainer")["Mounts"]
    }
    assert mounts == {
        "/config": False, "/data": False, "/model": False, "/state": True, "/run/fedward": True,
    }  # fmt: skip
    code = (
        "import os; print(os.path.exists('/config/node.key'), os.path.exists('/config/client.pem'))"
    )
    assert stack.python("hospital-a-trainer", code).strip() == "False False"


def test_each_hospital_holds_its_own_keys_and_nobody_elses(stack: Stack) -> None:
    read = "import hashlib; print(hashlib.sha256(open('/config/node.key','rb').read()).hexdigest())"
    assert stack.python("hospital-a-link", read) != stack.python("hospital-b-link", read)
    held = "import os; print(sorted(os.listdir('/config')))"
    assert stack.python("hospital-a-link", held).strip() == str(
        ["ca.crt", "client.pem", "node.key", "site.toml", "study-signing.pub"]
    )
    assert "key" not in stack.python("edge", held).replace("keys", "")


@pytest.mark.parametrize(
    "service",
    ["aggregator", "control-plane", "edge", "hospital-a-link", "hospital-a-trainer", "renewals"],
)
def test_no_image_holds_what_an_intruder_would_use(stack: Stack, service: str) -> None:
    """Neither as a module nor as a program: installers, fetchers, another shell; nothing setuid."""
    code = """
import os, shutil
from importlib.util import find_spec
found = [name for name in ("pip", "uv", "ensurepip") if find_spec(name)]
programs = "pip pip3 uv apt-get apt dpkg perl bash curl wget nc ssh git gcc su mount"
found += [name for name in programs.split() if shutil.which(name)]
for folder, _, files in os.walk("/usr"):
    for file in (os.path.join(folder, name) for name in files):
        if not os.path.islink(file) and os.lstat(file).st_mode & 0o6000:
            found.append(file)
print(found, find_spec("torch") is not None)
"""
    torch = service == "hospital-a-trainer"
    assert stack.python(service, code).strip() == f"[] {torch}"


def test_prometheus_scrapes_everything_and_holds_the_studys_rounds(stack: Stack) -> None:
    query = stack.prometheus
    stack.wait(lambda: len(query("up == 1")) == 3, 60, "three targets up")
    assert query("fedward_rounds_total > 0")
    stack.wait(lambda: len(query("fedward_site_train_loss")) >= 2, 60, "train loss of both")
    assert len(query("fedward_edge_site_received_bytes_total > 0")) == 2
    assert query('fedward_node_up{site="hospital-a"} == 1')


def test_nobody_without_a_certificate_reads_prometheus(stack: Stack) -> None:
    code = """
import ssl, urllib.request
context = ssl.create_default_context(); context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
for url in ("https://prometheus:9090/", "https://alertmanager:9093/", "https://edge:8405/metrics"):
    try:
        urllib.request.urlopen(url, context=context, timeout=5)
        print("open", url)
    except OSError as error:
        print("refused")
"""
    assert stack.python("control-plane", code).split() == ["refused"] * 3


def test_only_known_ports_listen_and_a_hospital_opens_none(stack: Stack) -> None:
    """Those on a network speak TLS, as test_clone.py shows by asking each.

    On loopback inside one container: the SuperLink's private API, and what the link's forwarder
    and its SuperNode give the processes beside them; ports that the system chose.
    """
    found = {service: stack.listeners(service) for service in SERVICES}
    assert {service: networks for service, (networks, _) in found.items() if networks} == {
        "aggregator": {9092},
        "alertmanager": {9093},
        "control-plane": {9443},
        "edge": {8405, 8443},
        "prometheus": {9090},
    }
    resolvers = 1  # the engine's own, in each container that has a network
    inside = {service: len(loopback) - resolvers for service, (_, loopback) in found.items()}
    assert inside == {
        "aggregator": 1,
        "alertmanager": 0,
        "control-plane": 0,
        "edge": 0,
        "hospital-a-link": 2,
        "hospital-a-trainer": -1,
        "hospital-b-link": 2,
        "hospital-b-trainer": -1,
        "prometheus": 0,
        "renewals": -1,
    }


def test_compose_itself_finds_nothing_to_say(stack: Stack) -> None:
    assert compose("config", "--quiet") == ""
