"""The settings files in the ConfigMaps are files that our own programs accept."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from dashboard.settings import ControlPlaneSettings
from protocol.settings import parse
from protocol.site import load_site
from server.settings import load_aggregator

from .chart import APIS, Object, kinds, named, needs_helm, pods, profile, render

pytestmark = needs_helm


def files(objects: list[Object], name: str) -> dict[str, str]:
    """`name` in every ConfigMap and Secret, by the object's name."""
    found = {}
    for kind, key in (("ConfigMap", "data"), ("Secret", "stringData")):
        for item in kinds(objects, kind):
            if name in item.get(key, {}):
                found[item["metadata"]["name"]] = item[key][name]
    return found


@pytest.mark.parametrize("values", ["defaults", "everything", "aggregator"])
def test_the_aggregator_reads_its_settings(values: str, tmp_path: Path) -> None:
    """aggregator.toml loads, and its private listener is on loopback."""
    (text,) = files(profile(values), "aggregator.toml").values()
    (tmp_path / "aggregator.toml").write_text(text)
    settings = load_aggregator(tmp_path / "aggregator.toml")
    assert settings.private.host == "127.0.0.1"
    assert settings.fleet.port == 9092
    if values == "everything":
        assert settings.supervision.attempts == 3


@pytest.mark.parametrize("values", ["defaults", "everything", "aggregator"])
def test_the_control_plane_reads_its_settings(values: str) -> None:
    """control-plane.toml is valid, and asks for a token before it tells figures."""
    (text,) = files(profile(values), "control-plane.toml").values()
    settings = parse(tomllib.loads(text), ControlPlaneSettings, source="control-plane.toml")
    assert not settings.access.open_metrics
    if values == "everything":
        assert settings.database.url == "postgresql+psycopg://fedward@db.example.org/fedward"
        assert settings.database.password == Path("/secrets/database/password")
        assert "st-mary" in settings.certificates


@pytest.mark.parametrize("values", ["defaults", "everything", "hospital", "gpu"])
def test_each_hospital_reads_its_settings(values: str, tmp_path: Path) -> None:
    """site.toml loads; what a file names is mounted where the file says."""
    objects = profile(values)
    sites = files(objects, "site.toml")
    assert sites
    for text in sites.values():
        (tmp_path / "site.toml").write_text(text)
        site = load_site(tmp_path / "site.toml")
        assert site.trainer.remote is not None
        assert not site.model.allow_hub
        names = {o["metadata"]["name"]: o for o in kinds(objects, "Service")}
        host, _, port = site.trainer.remote.address.rpartition(":")
        service = names[host.split(".")[0]]
        assert str(service["spec"]["ports"][0]["port"]) == port
    if values == "everything":
        site_toml = tomllib.loads(sites["study-university-site"])
        assert site_toml["limits"] == {
            "studies": ["triage"],
            "max_steps": 1000000,
            "max_update_norm": 0.5,
            "quantization": ["nf4", "int8"],
        }
        assert site_toml["trainer"]["device"] == "cuda"
        assert site_toml["data"]["columns"] == {"instruction": "question", "output": "answer"}
    if values == "gpu":
        assert site.trainer.device == "cuda"


def mounted(pod: Object, container: Object) -> dict[str, Any]:
    """mountPath -> volume."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    return {m["mountPath"]: volumes.get(m["name"], {}) for m in container["volumeMounts"]}


@pytest.mark.parametrize("values", ["defaults", "hospital"])
def test_what_a_site_names_is_mounted(values: str, tmp_path: Path) -> None:
    """Each key that site.toml names for a half is an item of a Secret in that half's pod."""
    objects = profile(values)
    (text, *_) = files(objects, "site.toml").values()
    tree = tomllib.loads(text)
    found: dict[str, set[str]] = {}
    for name, pod in pods(objects):
        for half in ("link", "trainer"):
            if not name.endswith(f"-{half}"):
                continue
            found[half] = {
                f"{path}/{item['path']}"
                for path, volume in mounted(pod, pod["spec"]["containers"][0]).items()
                for item in volume.get("secret", {}).get("items", [])
            }
    remote = tree["trainer"]["remote"]
    aggregator = tree["aggregator"]
    assert {
        tree["link"]["node_key"],
        aggregator["client_certificate"],
        aggregator["client_key"],
        aggregator["ca_certificate"],
        *(remote[key] for key in ("link_certificate", "link_key", "trainer_certificate")),
    } == found["link"]
    assert {
        tree["trainer"]["signing_key"],
        aggregator["signing_key"],
        *(remote[key] for key in ("link_certificate", "trainer_key", "trainer_certificate")),
    } == found["trainer"]


def test_a_password_makes_a_secret() -> None:
    """site.toml with a proxy's password is a Secret; without one, a ConfigMap."""
    assert named(profile("hospital"), "Secret", "fed-st-mary-site")
    assert named(profile("gpu"), "ConfigMap", "fed-university-site")


def test_a_changed_setting_starts_the_pod_anew() -> None:
    """The pod's annotation is the settings' digest."""

    def stamp(values: str, kind: str, name: str) -> str:
        found = named(profile(values), kind, name)["spec"]["template"]["metadata"]["annotations"]
        return str(found["fedward.dev/settings"])

    assert stamp("defaults", "StatefulSet", "fed-aggregator") != stamp(
        "everything", "StatefulSet", "study-aggregator"
    )


def test_alerts_link_to_the_control_planes_own_runbooks() -> None:
    """No placeholder is left: the Service's name, the Ingress's, or the address that was given."""
    inside = "https://fed-control-plane.centre.svc.cluster.local:9443/runbooks"
    ingress = {"controlPlane": {"ingress": {"enabled": True, "hostname": "fl.example"}}}
    own = {"monitoring": {"prometheusRule": {"runbooks": "https://wiki.example/fl"}}}
    for values, where in (
        ({}, inside),
        (ingress, "https://fl.example/runbooks"),
        (ingress | own, "https://wiki.example/fl"),
    ):
        (rule,) = kinds(render(values, apis=APIS), "PrometheusRule")
        alerts = [one for group in rule["spec"]["groups"] for one in group["rules"]]
        links = {one["annotations"]["runbook_url"].rpartition("/")[0] for one in alerts}
        assert links == {where}
