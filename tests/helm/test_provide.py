"""The certs Job: what it makes is made once, kept, given to the right part, and renewed."""

import base64
import datetime as dt
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from cryptography import x509

from certs import CertError
from protocol.registry import Registry

from .chart import named, needs_helm, render
from .cluster_api import FakeCluster, fake_cluster

FILES = Path(__file__).resolve().parents[2] / "helm" / "fedward" / "files"
NAMES = ["localhost", "127.0.0.1", "fed-edge.centre.svc.cluster.local"]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FILES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


cluster_module = _load("cluster")
provide = _load("provide")


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with fake_cluster() as fake:
        yield fake


class Release:
    """A release whose Job can be run again and again."""

    def __init__(self, fake: FakeCluster, folder: Path, prefix: str = "fed") -> None:
        self.fake, self.folder, self.prefix, self.runs = fake, folder, prefix, 0

    def _provider(self) -> Any:
        api = cluster_module.Cluster.__new__(cluster_module.Cluster)
        api._labels = {"app.kubernetes.io/component": "certs"}
        api._client = httpx.Client(base_url=self.fake.url)
        self.runs += 1
        return provide.Provider(api, self.prefix, self.folder / f"{self.prefix}-{self.runs}")

    def federation(self, **changes: Any) -> Any:
        plan = {
            "sites": ["hospital-a", "hospital-b"],
            "server_names": NAMES,
            "address": "fl.example.org:443",
            "enrol": {},
            "revoke": [],
            "cert_manager": False,
        }
        provider = self._provider()
        provide.federation(plan | changes, provider)
        return provider

    def hospital(self, **changes: Any) -> Any:
        provider = self._provider()
        plan = {"site": "st-mary", "bundle": "", "ca_fingerprint": ""}
        provide.hospital(plan | changes, provider)
        return provider

    def secret(self, part: str) -> dict[str, bytes]:
        found = self.fake.objects["secrets", f"{self.prefix}-{part}"]
        return {key: base64.b64decode(value) for key, value in found["data"].items()}

    def config_map(self, part: str) -> dict[str, str]:
        data: dict[str, str] = self.fake.objects["configmaps", f"{self.prefix}-{part}"]["data"]
        return data


@pytest.fixture
def centre(cluster: FakeCluster, tmp_path: Path) -> Release:
    return Release(cluster, tmp_path)


@pytest.fixture
def st_mary(cluster: FakeCluster, tmp_path: Path) -> Release:
    return Release(cluster, tmp_path, "mary")


def everything(fake: FakeCluster) -> dict[str, Any]:
    return {f"{kind}/{name}": body.get("data") for (kind, name), body in fake.objects.items()}


def test_each_part_gets_its_own(centre: Release) -> None:
    """No part's Secret holds another part's private key."""
    centre.federation()
    parts = ["aggregator", "edge", "control-plane", "coordinator", "operator"]
    sites = [f"hospital-{x}-{half}" for x in "ab" for half in ("link", "trainer")]
    seen: dict[bytes, str] = {}
    for part in (*parts, *sites):
        for name, data in centre.secret(part).items():
            if name.endswith(".key"):
                assert b"PRIVATE KEY" in data
                assert data not in seen, f"{part} and {seen[data]} share {name}"
                seen[data] = part
    assert set(centre.secret("hospital-a-link")) == {
        *("node.key", "node.pub", "client.crt", "client.key", "client.pem", "ca.crt"),
        *("link.key", "link.crt", "trainer.crt"),
    }
    assert set(centre.secret("hospital-a-trainer")) == {
        *("signing.key", "signing.pub", "study-signing.pub"),
        *("trainer.key", "trainer.crt", "link.crt"),
    }


def test_what_the_pods_mount_is_there(centre: Release) -> None:
    """Every key that a template mounts is one that the Job makes."""
    centre.federation()
    assert {"server.crt", "server.key", "ca.crt", "study-signing.key"} <= set(
        centre.secret("aggregator")
    )
    assert {"server.pem", "ca.crt", "crl.pem"} <= set(centre.secret("edge"))
    assert {"server.crt", "server.key"} <= set(centre.secret("control-plane"))
    assert set(centre.secret("tokens")) == {
        *("coordinator.token", "operator.token", "aggregator.token"),
    }
    assert {"registry.json", "ca.crt", "aggregator.crt", "edge.crt", "site-hospital-a.crt"} <= set(
        centre.config_map("public")
    )


def test_nothing_secret_is_public(centre: Release) -> None:
    """ConfigMaps hold certificates and public keys."""
    centre.federation()
    for (kind, _), body in centre.fake.objects.items():
        if kind == "configmaps":
            assert "PRIVATE" not in json.dumps(body["data"])
            assert "token" not in body["data"]


def test_a_second_run_changes_no_identity(centre: Release) -> None:
    """An upgrade keeps every key, certificate and token; only the revocation list is fresh."""
    centre.federation()
    before = everything(centre.fake)
    centre.federation()
    after = everything(centre.fake)
    for name, data in before.items():
        for key, value in (data or {}).items():
            if key not in {"crl.pem", "ca.crl.pem", "ca.state.json", "registry.sites.json"}:
                assert after[name][key] == value, f"{name} {key}"


def test_a_hospital_more(centre: Release) -> None:
    """A third demo hospital leaves the two others as they are."""
    centre.federation()
    before = centre.secret("hospital-a-link")
    centre.federation(sites=["hospital-a", "hospital-b", "hospital-c"])
    assert centre.secret("hospital-a-link") == before
    registry = Registry.model_validate_json(centre.config_map("public")["registry.json"])
    assert sorted(registry.active()) == ["hospital-a", "hospital-b", "hospital-c"]


def test_a_run_that_broke_off_is_repeated(centre: Release) -> None:
    """Whichever object could not be written, the next run ends with a whole federation."""
    for name in ("fed-ca", "fed-edge", "fed-hospital-b-link", "fed-tokens", "fed-public"):
        centre.fake.objects.clear()
        centre.fake.fail_on = name
        with pytest.raises(cluster_module.ClusterError, match="disk is full"):
            centre.federation()
        centre.fake.fail_on = ""
        centre.federation()
        root = x509.load_pem_x509_certificate(centre.secret("edge")["ca.crt"])
        for part in ("hospital-a-link", "hospital-b-link"):
            leaf = x509.load_pem_x509_certificate(centre.secret(part)["client.crt"])
            leaf.verify_directly_issued_by(root)


def test_a_write_between_is_noticed(centre: Release) -> None:
    """Two runs at once: the later one starts over instead of overwriting."""
    centre.federation()
    centre.fake.conflicts = 1
    with pytest.raises(cluster_module.ChangedMeanwhileError):
        centre.federation(sites=["hospital-a"])


def test_servers_are_renewed_for_a_new_name(centre: Release) -> None:
    """Another edge.hostname makes another certificate, by the same CA."""
    centre.federation()
    before = centre.secret("edge")["server.crt"]
    centre.federation(server_names=[*NAMES, "fl.example.org"])
    after = x509.load_pem_x509_certificate(centre.secret("edge")["server.crt"])
    assert centre.secret("edge")["server.crt"] != before
    names = after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fl.example.org" in names.get_values_for_type(x509.DNSName)


def test_a_hospital_enrols(centre: Release, st_mary: Release) -> None:
    """Request, fingerprint, approval, bundle, fingerprint: the keys never leave the hospital."""
    centre.federation()
    st_mary.hospital()
    asked = st_mary.config_map("st-mary-request")
    keys = {k: v for k, v in st_mary.secret("st-mary-link").items() if k.endswith(".key")}
    enrol = {"st-mary": {"request": asked["request.json"], "fingerprint": asked["fingerprint"]}}
    centre.federation(enrol=enrol)
    bundle = centre.config_map("bundle-st-mary")["bundle.json"]
    assert "PRIVATE" not in bundle
    st_mary.hospital(bundle=bundle, ca_fingerprint=centre.config_map("public")["ca.fingerprint"])
    link, trainer = st_mary.secret("st-mary-link"), st_mary.secret("st-mary-trainer")
    assert {k: link[k] for k in keys} == keys
    assert link["ca.crt"] == centre.secret("edge")["ca.crt"]
    assert trainer["study-signing.pub"] == centre.secret("aggregator")["study-signing.pub"]
    leaf = x509.load_pem_x509_certificate(link["client.crt"])
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(link["ca.crt"]))
    registry = Registry.model_validate_json(centre.config_map("public")["registry.json"])
    assert "st-mary" in registry.active()

    before = everything(centre.fake)
    centre.federation(enrol=enrol)
    st_mary.hospital(bundle=bundle, ca_fingerprint=centre.config_map("public")["ca.fingerprint"])
    after = everything(centre.fake)
    assert after["configmaps/fed-bundle-st-mary"] == before["configmaps/fed-bundle-st-mary"]
    assert after["secrets/mary-st-mary-link"] == before["secrets/mary-st-mary-link"]


def test_an_upgrade_without_the_bundle(centre: Release, st_mary: Release) -> None:
    """It is stopped before it takes the pods away, and changes nothing."""
    centre.federation()
    st_mary.hospital()
    asked = st_mary.config_map("st-mary-request")
    enrol = {"st-mary": {"request": asked["request.json"], "fingerprint": asked["fingerprint"]}}
    centre.federation(enrol=enrol)
    bundle = centre.config_map("bundle-st-mary")["bundle.json"]
    st_mary.hospital(bundle=bundle, ca_fingerprint=centre.config_map("public")["ca.fingerprint"])
    before = everything(centre.fake)
    with pytest.raises(cluster_module.ClusterError, match=r"bundle is empty.*mary-st-mary-link"):
        st_mary.hospital()
    assert everything(centre.fake) == before


def test_a_wrong_fingerprint_enrols_nobody(centre: Release, st_mary: Release) -> None:
    """A request that is not the one read aloud is refused, on both sides."""
    st_mary.hospital()
    asked = st_mary.config_map("st-mary-request")["request.json"]
    enrol = {"st-mary": {"request": asked, "fingerprint": "0000 " * 8}}
    with pytest.raises(CertError, match="fingerprint"):
        centre.federation(enrol=enrol)
    enrol["st-mary"]["fingerprint"] = st_mary.config_map("st-mary-request")["fingerprint"]
    centre.federation(enrol=enrol)
    bundle = centre.config_map("bundle-st-mary")["bundle.json"]
    with pytest.raises(CertError, match="fingerprint"):
        st_mary.hospital(bundle=bundle, ca_fingerprint="0000 " * 8)


def test_a_request_under_another_name(centre: Release, st_mary: Release) -> None:
    """A request stands under its own hospital's name, or it is refused by that name."""
    st_mary.hospital()
    asked = st_mary.config_map("st-mary-request")
    item = {"request": asked["request.json"], "fingerprint": asked["fingerprint"]}
    with pytest.raises(cluster_module.ClusterError, match=r"certs\.enrol\.riverside"):
        centre.federation(enrol={"riverside": item})


def test_a_revoked_hospital(centre: Release) -> None:
    """Its key leaves the list, its serial joins the revocation list, and it gets no new leaf."""
    centre.federation()
    leaf = x509.load_pem_x509_certificate(centre.secret("hospital-b-link")["client.crt"])
    for _ in range(2):
        centre.federation(revoke=["hospital-b"])
    registry = Registry.model_validate_json(centre.config_map("public")["registry.json"])
    assert sorted(registry.active()) == ["hospital-a"]
    revoked = x509.load_pem_x509_crl(centre.secret("edge")["crl.pem"])
    assert revoked.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None


@needs_helm
def test_a_hospital_is_taken_out_of_the_values(centre: Release, st_mary: Release) -> None:
    """The Job reads what its Role names and no more, and the hospital stays enrolled."""
    centre.federation()
    st_mary.hospital()
    asked = st_mary.config_map("st-mary-request")
    item = {"request": asked["request.json"], "fingerprint": asked["fingerprint"]}
    centre.federation(enrol={"st-mary": item})
    role = named(render({"demo": {"enabled": False}}), "Role", "fed-certs")
    centre.fake.readable = {
        (kind, name)
        for rule in role["rules"]
        for kind in rule["resources"]
        for name in rule.get("resourceNames", [])
    }
    centre.federation(sites=[])
    registry = Registry.model_validate_json(centre.config_map("public")["registry.json"])
    assert sorted(registry.active()) == ["hospital-a", "hospital-b", "st-mary"]


def test_renewal_near_the_end(
    centre: Release, st_mary: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate with less than a third of its life left is renewed, with the same keys."""
    centre.federation()
    st_mary.hospital()
    asked = st_mary.config_map("st-mary-request")
    item = {"request": asked["request.json"], "fingerprint": asked["fingerprint"]}
    centre.federation(enrol={"st-mary": item})
    before = centre.config_map("bundle-st-mary")["bundle.json"]
    monkeypatch.setattr(provide, "_near_end", lambda *_: True)
    centre.federation(enrol={"st-mary": item})
    after = centre.config_map("bundle-st-mary")["bundle.json"]
    assert json.loads(after)["certificate"] != json.loads(before)["certificate"]
    assert json.loads(after)["node_key"] == json.loads(before)["node_key"]


def test_near_end_is_a_third() -> None:
    """Ninety days: renewed in the last thirty."""
    life, now = dt.timedelta(days=90), dt.datetime.now(dt.UTC)
    stamp = "%Y-%m-%dT%H:%M:%SZ"
    assert provide._near_end((now + dt.timedelta(days=29)).strftime(stamp), life)
    assert not provide._near_end((now + dt.timedelta(days=31)).strftime(stamp), life)


def test_cert_manager_brings_the_servers(centre: Release) -> None:
    """The servers' pairs are cert-manager's; clients trust its CA and ours; hospitals stay ours."""
    centre.federation()
    pair = centre.secret("coordinator")
    for part in ("aggregator", "edge", "control-plane"):
        data = {"tls.key": pair["client.key"], "tls.crt": pair["client.crt"], "ca.crt": b"ROOT\n"}
        body = {"metadata": {"name": f"fed-tls-{part}"}, "data": {}}
        body["data"] = {k: base64.b64encode(v).decode() for k, v in data.items()}
        centre.fake.put("POST", "secrets", f"fed-tls-{part}", body)
    centre.federation(cert_manager=True)
    assert centre.secret("edge")["server.pem"] == pair["client.key"] + pair["client.crt"]
    assert centre.secret("hospital-a-link")["ca.crt"].endswith(b"ROOT\n")
    assert centre.secret("hospital-a-link")["ca.crt"].startswith(b"-----BEGIN")


def test_link_and_trainer_know_each_other(centre: Release, tmp_path: Path) -> None:
    """The pair that the Job makes is one that both halves accept."""
    from hospital_node.link.trainer_client import status
    from hospital_node.trainer.listener import RemoteListener
    from protocol.envelope import Envelope
    from protocol.framing import Kind, receive, send
    from protocol.site import RemoteSettings

    centre.federation()
    for half in ("link", "trainer"):
        (tmp_path / half).mkdir()
        for name, data in centre.secret(f"hospital-a-{half}").items():
            (tmp_path / half / name).write_bytes(data)
    port = 39095
    here = RemoteSettings(
        address=f"127.0.0.1:{port}",
        trainer_certificate=tmp_path / "trainer" / "trainer.crt",
        trainer_key=tmp_path / "trainer" / "trainer.key",
        link_certificate=tmp_path / "trainer" / "link.crt",
        link_key=Path("/nowhere"),
    )
    there = RemoteSettings(
        address=f"127.0.0.1:{port}",
        trainer_certificate=tmp_path / "link" / "trainer.crt",
        trainer_key=Path("/nowhere"),
        link_certificate=tmp_path / "link" / "link.crt",
        link_key=tmp_path / "link" / "link.key",
    )
    listener = RemoteListener(here)

    def answer(stream: Any) -> None:
        while receive(stream):
            send(stream, Kind.PROGRESS, Envelope(b"{}", b"", b""))

    listener.start(answer)
    assert status(there) == Envelope(b"{}", b"", b"")
    listener.close()
