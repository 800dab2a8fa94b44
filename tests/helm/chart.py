"""The chart, rendered: `render(values)` and ways to find things in it."""

import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "fedward"
VALUES = ROOT / "tests" / "helm" / "values"
HELM = os.environ.get("HELM") or shutil.which("helm") or ""
Object = dict[str, Any]

needs_helm = pytest.mark.skipif(not HELM, reason="no helm on PATH, and HELM names none")

# What clusters with these extensions say that they know.
APIS = (
    "monitoring.coreos.com/v1/ServiceMonitor",
    "monitoring.coreos.com/v1/PrometheusRule",
    "gateway.networking.k8s.io/v1/TLSRoute",
)
PROFILES = ("defaults", "everything", "hospital", "aggregator", "gpu")


class RefusedError(Exception):
    """Helm refused the values; its words."""


def values_of(profile: str) -> dict[str, Any]:
    """The values file of a profile; `defaults` has none."""
    if profile == "defaults":
        return {}
    loaded: dict[str, Any] = yaml.safe_load((VALUES / f"{profile}.yaml").read_text())
    return loaded


def render(
    values: dict[str, Any] | None = None,
    *,
    kube: str = "1.29.0",
    apis: tuple[str, ...] = (),
    namespace: str = "centre",
) -> list[Object]:
    """All objects of `helm template`.

    Raises:
        RefusedError: helm refuses the values.
    """
    text = _render(json.dumps(values or {}, sort_keys=True), kube, apis, namespace)
    return [found for found in yaml.safe_load_all(text) if found]


def render_text(profile: str, kube: str = "1.29.0") -> str:
    """The text of a profile."""
    return _render(json.dumps(values_of(profile), sort_keys=True), kube, APIS, "centre")


@functools.cache
def _render(values: str, kube: str, apis: tuple[str, ...], namespace: str) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(values)
        file.flush()
        command = [HELM, "template", "fed", str(CHART), "--namespace", namespace]
        command += ["--values", file.name, "--kube-version", kube]
        for api in apis:
            command += ["--api-versions", api]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(done.stderr)
    return done.stdout


def profile(name: str, kube: str = "1.29.0") -> list[Object]:
    """A profile, on a cluster with Prometheus' and the Gateway API's kinds."""
    return render(values_of(name), kube=kube, apis=APIS)


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    found = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} {kind} {name}"
    return found[0]


def kinds(objects: list[Object], kind: str) -> list[Object]:
    """Every object of a kind."""
    return [o for o in objects if o["kind"] == kind]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name and pod (metadata, spec) of everything that makes one."""
    for found in objects:
        name, spec = f"{found['kind']} {found['metadata']['name']}", found.get("spec", {})
        if found["kind"] == "Pod":
            yield name, found
        elif found["kind"] in {"Deployment", "StatefulSet", "Job"}:
            yield name, spec["template"]
        elif found["kind"] == "CronJob":
            yield name, spec["jobTemplate"]["spec"]["template"]


def containers(pod: Object) -> list[Object]:
    """A pod's containers, those that run first included."""
    spec = pod["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]
