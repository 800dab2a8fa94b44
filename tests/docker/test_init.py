"""The init job hands each container its own keys and settings that its service accepts."""

import stat
import sys
from pathlib import Path

import pytest
import tomli_w
from stack import ROOT

from certs.local import make_federation
from dashboard.settings import load_control_plane
from protocol.errors import SettingsError
from protocol.registry import load_registry
from protocol.site import load_site
from protocol.study import load_study
from server.settings import load_aggregator

sys.path.insert(0, str(ROOT / "docker" / "init"))

from fedward_compose import hospital
from fedward_compose.init import Plan, make

SITES = ("hospital-a", "hospital-b")
FOLDERS = (
    "edge", "aggregator", "control-plane", "monitoring", "cli", "model",
    *(f"{site}-{part}" for site in SITES for part in ("link", "trainer", "data")),
)  # fmt: skip


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A topology whose volumes are folders, made once."""
    folder = tmp_path_factory.mktemp("init")
    (folder / "pki").mkdir()
    for name in FOLDERS:
        (folder / "out" / name).mkdir(parents=True)
    made = Plan(SITES, ("fl.example.org",), folder / "pki", folder / "out", demo=True)
    make(made)
    return made


def test_every_service_accepts_its_settings(plan: Plan) -> None:
    aggregator = load_aggregator(plan.out / "aggregator" / "aggregator.toml")
    assert set(load_registry(aggregator.registry).active()) == set(SITES)
    assert aggregator.private.host == "127.0.0.1"
    control_plane = load_control_plane(plan.out / "control-plane" / "control-plane.toml")
    assert all(file.exists() for file in control_plane.certificates.values())
    assert set(control_plane.certificates) == {"ca", "aggregator", "coordinator", "operator"}
    assert control_plane.revocation_list
    assert control_plane.revocation_list.exists()
    registry = load_registry(control_plane.registry)
    assert all(site.not_after is not None for site in registry.active().values())
    for site in SITES:
        for part in ("link", "trainer"):
            settings = load_site(plan.out / f"{site}-{part}" / "site.toml")
            assert settings.name == site
            assert str(settings.trainer.socket) == "/run/fedward/trainer.sock"
    assert load_study(plan.out / "cli" / "demo-study.toml").rounds.count >= 5


def test_a_private_key_lies_in_one_volume_alone(plan: Plan) -> None:
    """The edge and the SuperLink share one pair, as two doors of one house."""
    found: dict[str, set[str]] = {}
    for file in plan.out.rglob("*"):
        if file.is_file() and b"PRIVATE KEY" in file.read_bytes():
            key = file.read_bytes().split(b"-----END")[0].decode()
            found.setdefault(key, set()).add(file.relative_to(plan.out).parts[0])
            assert stat.S_IMODE(file.stat().st_mode) & 0o007 == 0, file
    shared = [folders for folders in found.values() if len(folders) > 1]
    assert shared == [{"edge", "aggregator"}]
    assert len(found) >= 10


def test_no_container_of_a_hospital_holds_the_cas_key_or_a_token(plan: Plan) -> None:
    for site in SITES:
        for part, allowed in (
            ("link", {"ca.crt", "client.pem", "node.key", "site.toml", "study-signing.pub"}),
            ("trainer", {"ca.crt", "signing.key", "site.toml", "study-signing.pub"}),
            ("data", {"train.jsonl", "heldout.jsonl"}),
        ):
            assert {file.name for file in (plan.out / f"{site}-{part}").iterdir()} == allowed


def test_a_second_time_changes_no_key_no_token_and_no_settings(plan: Plan) -> None:
    before = {file: file.read_bytes() for file in plan.out.rglob("*") if file.is_file()}
    (plan.out / "cli" / "demo-study.toml").write_bytes(b"# mine\n")
    make(plan)
    changed = {file.name for file, data in before.items() if file.read_bytes() != data}
    assert changed <= {"crl.pem", "demo-study.toml"}
    assert (plan.out / "cli" / "demo-study.toml").read_bytes() == b"# mine\n"


def test_a_hospitals_folder_is_split_between_its_two_containers(tmp_path: Path) -> None:
    source = tmp_path / "site"
    paths = make_federation(tmp_path / "pki", ["st-mary"]).sites["st-mary"]
    source.mkdir()
    for file in paths.folder.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    settings = {
        "name": "st-mary",
        "aggregator": {
            "address": "fl.example.org:8443",
            "ca_certificate": "anything.crt",
            "signing_key": "anything.pub",
            "proxy": "http://proxy:3128",
        },
        "link": {"node_key": "anything"},
        "data": {"train": ["/data/notes.jsonl"]},
        "trainer": {"signing_key": "anything", "device": "cuda"},
    }
    (source / "site.toml").write_text(
        tomli_w.dumps(
            settings
            | {"aggregator": {**settings["aggregator"], "client_certificate": "client.pem"}}
        )
    )  # type: ignore[dict-item]
    for part in ("link", "trainer"):
        (tmp_path / "out" / part).mkdir(parents=True)
    hospital.split(source, tmp_path / "out")
    site = load_site(tmp_path / "out" / "link" / "site.toml")
    assert site.aggregator.proxy == "http://proxy:3128"
    assert site.aggregator.client_certificate == tmp_path / "out" / "link" / "client.pem"
    assert site.trainer.device == "cuda"
    link = {file.name for file in (tmp_path / "out" / "link").iterdir()}
    trainer = {file.name for file in (tmp_path / "out" / "trainer").iterdir()}
    assert "signing.key" not in link
    assert not {"node.key", "client.pem"} & trainer


def test_a_hospital_that_is_not_enrolled_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"site\.toml: cannot be read"):
        hospital.split(tmp_path, tmp_path)
