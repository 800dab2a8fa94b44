"""The chart in a real cluster: install, study, test, upgrade, a lost pod, two releases, uninstall.

    KUBECONFIG=... python -m pytest tests/helm/test_live.py     # its nodes have fedward/*:0.1.0

One story in order, because each step stands on the one before; it took 41
minutes on two busy processors.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboard.views import StudyDetail
from fedward.control import Address, ControlPlane, ControlPlaneError
from fedward.demo import demo_study
from protocol.states import StudyState

from .chart import CHART, HELM, needs_helm

KUBECTL = shutil.which("kubectl") or ""
CENTRE, HOSPITAL = "fedward-centre", "fedward-st-mary"
# Small machines: what the chart asks for by default leaves room for nothing else.
SECONDS = float(os.environ.get("FEDWARD_LIVE_SECONDS", "600"))


def _reachable() -> bool:
    if not KUBECTL:
        return False
    done = subprocess.run([KUBECTL, "get", "--raw", "/readyz"], capture_output=True, check=False)
    return done.returncode == 0


pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    needs_helm,
    pytest.mark.skipif(not _reachable(), reason="kubectl reaches no cluster"),
]


def kubectl(*arguments: str, namespace: str = CENTRE, check: bool = True) -> str:
    command = [KUBECTL, "--namespace", namespace, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def helm(*arguments: str, namespace: str = CENTRE) -> str:
    command = [HELM, "--namespace", namespace, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}\n{state(namespace)}"
    return done.stdout


def state(namespace: str) -> str:
    return kubectl("get", "pods", "-o", "wide", namespace=namespace, check=False) + kubectl(
        "get", "events", "--sort-by=.lastTimestamp", namespace=namespace, check=False
    )


def data(kind: str, name: str, key: str, namespace: str = CENTRE) -> str:
    found = json.loads(kubectl("get", kind, name, "-o", "json", namespace=namespace))["data"][key]
    return base64.b64decode(found).decode() if kind == "secret" else str(found)


class Plane:
    """The control plane through a port-forward, which ends whenever its pod does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "ca.crt").write_text(data("configmap", "fed-public", "ca.crt"))
        (folder / "token").write_text(data("secret", "fed-tokens", "coordinator.token"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._forward: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        if self._forward is not None:
            self._forward.terminate()
            self._forward.wait()

    def __call__(self) -> ControlPlane:
        url = f"https://127.0.0.1:{self._port}"
        plane = ControlPlane(Address(url, self._folder / "ca.crt", self._folder / "token"))
        until = time.monotonic() + 120
        while True:
            if self._forward is None or self._forward.poll() is not None:
                command = [KUBECTL, "--namespace", CENTRE, "port-forward", "--address=127.0.0.1"]
                command += ["service/fed-control-plane", f"{self._port}:9443"]
                self._forward = subprocess.Popen(
                    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            try:
                plane.wait_until_ready(10)
                return plane
            except ControlPlaneError:
                assert time.monotonic() < until, state(CENTRE)
                self._forward.terminate()
                self._forward.wait()

    def submit(self, name: str, sites: tuple[str, ...], rounds: int, steps: int) -> str:
        demo = demo_study(Path("embedded"))
        return self().submit(
            demo.model_copy(
                update={
                    "name": name,
                    "sites": sites,
                    "training": demo.training.model_copy(update={"steps": steps}),
                    "evaluation": demo.evaluation.model_copy(update={"lone_baseline": False}),
                    "rounds": demo.rounds.model_copy(
                        update={"count": rounds, "minimum_sites": len(sites)}
                    ),
                }
            )
        )

    def study(self, study_id: str) -> StudyDetail:
        with contextlib.suppress(ControlPlaneError):
            return self().study(study_id)
        return self().study(study_id)

    def wait(self, study_id: str, rounds: int | None = None) -> StudyDetail:
        """Until it ended, or until so many rounds are done."""
        until = time.monotonic() + SECONDS
        while True:
            found = self.study(study_id)
            if found.state.ended or (rounds is not None and found.rounds_done >= rounds):
                return found
            assert time.monotonic() < until, f"{found.state} {found.rounds_done}\n{state(CENTRE)}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """`helm install` with the defaults, and everything ready."""
    kubectl("create", "namespace", CENTRE, check=False)
    kubectl(
        *("label", "--overwrite", "namespace", CENTRE),
        "pod-security.kubernetes.io/enforce=restricted",
    )
    started = time.monotonic()
    helm("upgrade", "--install", "fed", str(CHART), "--wait", "--timeout", "10m")
    print(f"\ninstall: every pod ready after {time.monotonic() - started:.0f} s")
    plane = Plane(tmp_path_factory.mktemp("plane"))
    yield plane
    plane.close()


SITES = ("hospital-a", "hospital-b")


def test_every_pod_is_ready(centre: Plane) -> None:
    """Aggregator, edge, control plane, two links, two trainers."""
    pods = json.loads(kubectl("get", "pods", "-o", "json"))["items"]
    running = [p for p in pods if p["status"]["phase"] == "Running"]
    assert len(running) == 7
    for pod in running:
        assert all(c["ready"] for c in pod["status"]["containerStatuses"]), pod["metadata"]["name"]


def test_a_study_of_three_rounds_finishes(centre: Plane) -> None:
    """Both hospitals are in every round."""
    started = time.monotonic()
    done = centre.wait(centre.submit("three-rounds", SITES, 3, 4))
    print(f"\nstudy: 3 rounds in {time.monotonic() - started:.0f} s")
    assert done.state is StudyState.FINISHED, done.verdict
    assert {view.site: view.rounds_ok for view in done.sites} == dict.fromkeys(SITES, 3)


def test_helm_test(centre: Plane) -> None:
    """The chart's own test passes."""
    assert "Succeeded" in helm("test", "fed", "--timeout", "10m")


def test_an_upgrade_in_mid_study(centre: Plane) -> None:
    """Another value starts the aggregator anew; the study goes on and ends."""
    study = centre.submit("upgraded", SITES, 6, 4)
    before = centre.wait(study, rounds=1)
    assert not before.state.ended
    uid = kubectl("get", "pod", "fed-aggregator-0", "-o", "jsonpath={.metadata.uid}")
    helm(
        *("upgrade", "fed", str(CHART), "--wait", "--timeout", "10m"),
        *("--set", "aggregator.supervision.attempts=7", "--set", "pods.annotations.round=two"),
    )
    assert uid != kubectl("get", "pod", "fed-aggregator-0", "-o", "jsonpath={.metadata.uid}")
    done = centre.wait(study)
    assert done.state is StudyState.FINISHED, done.verdict
    assert done.rounds_done == 6
    print(f"\nupgrade: study of 6 rounds finished with {done.interruptions} interruption(s)")


def pod_of(part: str) -> str:
    """The name of a part's only pod."""
    chosen = f"app.kubernetes.io/component={part}"
    if "-" in part and part != "control-plane":
        site, _, half = part.rpartition("-")
        chosen = f"app.kubernetes.io/component={half},fedward.dev/site={site}"
    name = kubectl("get", "pod", "-l", chosen, "-o", "jsonpath={.items[0].metadata.name}")
    assert name, part
    return name


PARTS = ("aggregator", "hospital-a-trainer", "hospital-a-link", "edge", "control-plane")


@pytest.mark.parametrize("how", ["deleted", "killed"])
@pytest.mark.parametrize("part", PARTS)
def test_a_pod_is_lost_in_mid_study(centre: Plane, part: str, how: str) -> None:
    """Another takes its place, and the study ends with both hospitals in every round.

    Killed: no goodbye, as when a machine is gone.
    """
    study = centre.submit(f"{part}-{how}", SITES, 5, 4)
    centre.wait(study, rounds=1)
    started = time.monotonic()
    force = ["--grace-period=0", "--force"] if how == "killed" else []
    kubectl("delete", "pod", pod_of(part), *force)
    done = centre.wait(study)
    print(f"\n{part} {how}: the study's other rounds took {time.monotonic() - started:.0f} s")
    assert done.state is StudyState.FINISHED, done.verdict
    assert done.rounds_done == 5
    assert {view.site: view.rounds_ok for view in done.sites} == dict.fromkeys(SITES, 5)


def test_a_hospital_in_a_release_of_its_own(centre: Plane, tmp_path: Path) -> None:
    """Request, bundle and two fingerprints; then it trains with a hospital of the centre."""
    values: dict[str, Any] = {
        "aggregator": {"enabled": False},
        "hospital": {
            "enabled": True,
            "name": "st-mary",
            "aggregator": {"address": f"fed-edge.{CENTRE}.svc.cluster.local:8443"},
            "data": {"demo": True},
            "trainer": {
                "threads": 1,
                "resources": {
                    "requests": {"cpu": "100m", "memory": "768Mi"},
                    "limits": {"cpu": "2", "memory": "3Gi"},
                },
            },
        },
    }
    file = tmp_path / "st-mary.yaml"
    file.write_text(yaml.safe_dump(values))
    kubectl("create", "namespace", HOSPITAL, check=False)
    helm("install", "node", str(CHART), "--values", str(file), namespace=HOSPITAL)
    started = kubectl("get", "pods", "-o", "name", namespace=HOSPITAL).split()
    assert not [pod for pod in started if "certs-init" not in pod]  # that one is just going

    request = tmp_path / "request.json"
    request.write_text(data("configmap", "node-st-mary-request", "request.json", HOSPITAL))
    spoken = data("configmap", "node-st-mary-request", "fingerprint", HOSPITAL).strip()
    helm(
        *("upgrade", "fed", str(CHART), "--wait", "--timeout", "10m"),
        *("--set-file", f"certs.enrol.st-mary.request={request}"),
        *("--set-string", f"certs.enrol.st-mary.fingerprint={spoken}"),
    )
    bundle = tmp_path / "bundle.json"
    bundle.write_text(data("configmap", "fed-bundle-st-mary", "bundle.json"))
    spoken = data("configmap", "fed-public", "ca.fingerprint").strip()
    helm(
        *("upgrade", "node", str(CHART), "--values", str(file), "--wait", "--timeout", "10m"),
        *("--set-file", f"hospital.enrolment.bundle={bundle}"),
        *("--set-string", f"hospital.enrolment.caFingerprint={spoken}"),
        namespace=HOSPITAL,
    )
    done = centre.wait(centre.submit("two-releases", ("hospital-a", "st-mary"), 3, 4))
    assert done.state is StudyState.FINISHED, done.verdict
    assert {view.site: view.rounds_ok for view in done.sites} == {"hospital-a": 3, "st-mary": 3}


# What docs/kubernetes.md says an uninstall leaves: the volumes, what the certs Job made, and the
# pod of `helm test`, whose log it keeps.
LEFT = {
    CENTRE: {
        "pod/fed-test",
        *(f"persistentvolumeclaim/state-fed-{part}-0" for part in ("aggregator", "control-plane")),
        *(f"persistentvolumeclaim/state-fed-{site}-trainer-0" for site in SITES),
        *(f"secret/fed-{part}" for part in ("ca", "aggregator", "edge", "control-plane")),
        *(f"secret/fed-{part}" for part in ("coordinator", "operator", "tokens")),
        *(f"secret/fed-{site}-{half}" for site in SITES for half in ("link", "trainer")),
        "configmap/fed-public",
        "configmap/fed-bundle-st-mary",
    },
    HOSPITAL: {
        "persistentvolumeclaim/state-node-st-mary-trainer-0",
        "secret/node-st-mary-link",
        "secret/node-st-mary-trainer",
        "configmap/node-st-mary-request",
    },
}
KINDS = "all,configmap,secret,role,rolebinding,serviceaccount,networkpolicy,pdb,cronjob,ingress,pvc"


def everything(namespace: str) -> set[str]:
    """All of a namespace but what Kubernetes itself puts into each."""
    names = kubectl("get", KINDS, "-o", "name", namespace=namespace).split()
    return {name for name in names if not re.search(r"/(default|kube-root-ca)", name)}


def test_uninstall_leaves_what_the_docs_say(centre: Plane) -> None:
    """Volumes, what the certs Job made, the test's pod; nothing else in either namespace."""
    centre.close()
    for release, namespace in (("node", HOSPITAL), ("fed", CENTRE)):
        helm("uninstall", release, "--wait", namespace=namespace)
        until = time.monotonic() + 120
        while everything(namespace) != LEFT[namespace] and time.monotonic() < until:
            time.sleep(2)  # pods are given their time to end
        assert everything(namespace) == LEFT[namespace]


def test_installed_again_everybody_is_known(centre: Plane) -> None:
    """The same keys and history: who was enrolled is enrolled still, and a study runs."""
    before = data("secret", "fed-hospital-a-link", "node.key")
    helm("install", "fed", str(CHART), "--wait", "--timeout", "10m")
    assert data("secret", "fed-hospital-a-link", "node.key") == before
    assert "three-rounds" in {study.name for study in centre().studies()}
    done = centre.wait(centre.submit("again", SITES, 2, 4))
    assert done.state is StudyState.FINISHED, done.verdict
    centre.close()
    helm("uninstall", "fed", "--wait")
    for namespace in (CENTRE, HOSPITAL):
        kubectl("delete", "namespace", namespace, "--wait=false", namespace="default")
