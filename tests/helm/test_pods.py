"""Pods: restricted, limited, read-only, with no more keys and rights than each needs."""

import re

import pytest

from .chart import (
    PROFILES,
    Object,
    containers,
    kinds,
    named,
    needs_helm,
    pods,
    profile,
    render,
    render_text,
)

pytestmark = needs_helm


def every(values: str) -> list[tuple[str, Object, Object]]:
    return [
        (f"{name}/{container['name']}", pod, container)
        for name, pod in pods(profile(values))
        for container in containers(pod)
    ]


@pytest.mark.parametrize("values", PROFILES)
def test_pods_are_restricted(values: str) -> None:
    """Kubernetes' level `restricted`, and a root that cannot be written."""
    for name, pod, container in every(values):
        spec, own = pod["spec"], container["securityContext"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert own["runAsNonRoot"] is True, name
        assert own["runAsUser"] > 10000, name
        assert own["readOnlyRootFilesystem"] is True, name
        assert own["allowPrivilegeEscalation"] is False, name
        assert own["privileged"] is False, name
        assert own["capabilities"] == {"drop": ["ALL"]}, name
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            assert not spec.get(key), name


@pytest.mark.parametrize("values", PROFILES)
def test_no_container_without_limits(values: str) -> None:
    """Requests and limits, for processor and memory."""
    for name, _, container in every(values):
        for key in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][key]), name


@pytest.mark.parametrize("values", PROFILES)
def test_no_token_where_none_is_used(values: str) -> None:
    """Only the certs Job speaks to the API server; it gets a token of an hour."""
    for name, pod in pods(profile(values)):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        tokens = [
            source["serviceAccountToken"]
            for volume in spec["volumes"]
            for source in volume.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in source
        ]
        assert bool(tokens) == ("certs" in name), name
        assert all(token["expirationSeconds"] <= 3600 for token in tokens)
        if "certs" not in name:
            assert spec["serviceAccountName"] in {"fed", "study"}


@pytest.mark.parametrize("values", PROFILES)
def test_the_least_rights(values: str) -> None:
    """No cluster role; reading and changing are bound to names; nothing can be listed."""
    objects = profile(values)
    assert not kinds(objects, "ClusterRole")
    assert not kinds(objects, "ClusterRoleBinding")
    for role in kinds(objects, "Role"):
        for rule in role["rules"]:
            assert set(rule["resources"]) <= {"secrets", "configmaps"}
            if rule["verbs"] != ["create"]:
                assert rule["resourceNames"]
                assert set(rule["verbs"]) <= {"get", "update"}


@pytest.mark.parametrize("values", PROFILES)
def test_nothing_secret_in_the_open(values: str) -> None:
    """No key, token or password in a ConfigMap, an argument or the environment."""
    secret = re.compile(
        r"PRIVATE KEY|password\s*=(?!\s*\"/secrets/)|://[^\s/@:\"]+:[^\s/@\"]+@", re.IGNORECASE
    )
    for item in kinds(profile(values), "ConfigMap"):
        for key, text in item["data"].items():
            if key.endswith((".toml", ".json")):
                assert not secret.search(text), f"{item['metadata']['name']} {key}"
    for name, _, container in every(values):
        words = [*container.get("command", []), *container.get("args", [])]
        words += [str(variable.get("value", "")) for variable in container.get("env", [])]
        assert not secret.search(" ".join(words)), name
        assert "envFrom" not in container, name
        assert not [v for v in container.get("env", []) if "secretKeyRef" in str(v)], name


def test_each_half_holds_its_own_keys() -> None:
    """The link cannot sign an update, the trainer cannot act as the node, neither sees the CA."""
    for name, pod in pods(profile("defaults")):
        keys = {
            item["key"]
            for volume in pod["spec"]["volumes"]
            for item in volume.get("secret", {}).get("items", [])
        }
        secrets = {v["secret"]["secretName"] for v in pod["spec"]["volumes"] if "secret" in v}
        assert "fed-ca" not in secrets, name
        if name.endswith("-link"):
            assert "signing.key" not in keys
        if name.endswith("-trainer"):
            assert not {"node.key", "client.key"} & keys
        if "aggregator" in name:
            assert "coordinator.token" not in keys


@pytest.mark.parametrize("values", ["defaults", "hospital", "gpu", "everything"])
def test_data_is_the_trainers_alone(values: str) -> None:
    """Rows and base model are mounted read-only, into the trainer."""
    for name, pod, container in every(values):
        for mount in container["volumeMounts"]:
            if mount["mountPath"] in {"/data", "/model"} and "model-" not in name:
                assert name.endswith("/trainer"), name
                assert mount["readOnly"] is True, name
        if name.endswith("/link"):
            sources = {next(iter(set(v) - {"name"})) for v in pod["spec"]["volumes"]}
            assert sources <= {"configMap", "secret", "emptyDir"}, name


@pytest.mark.parametrize("values", PROFILES)
def test_probes_and_grace(values: str) -> None:
    """What stays up is probed; what is working is given time to end."""
    for found in profile(values):
        if found["kind"] in {"Deployment", "StatefulSet"}:
            spec = found["spec"]["template"]["spec"]
            (container,) = spec["containers"]
            assert "readinessProbe" in container, found["metadata"]["name"]
            if not found["metadata"]["name"].endswith("-link"):
                assert "livenessProbe" in container, found["metadata"]["name"]
            assert spec["terminationGracePeriodSeconds"] >= 30


def test_gpus_reach_the_trainer() -> None:
    """Four GPUs, a runtime class, a large /dev/shm, the node that has them, and device cuda."""
    trainer = named(profile("gpu"), "StatefulSet", "fed-university-trainer")["spec"]["template"]
    (container,) = trainer["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert container["resources"]["requests"]["nvidia.com/gpu"] == 4
    assert trainer["spec"]["runtimeClassName"] == "nvidia"
    assert trainer["spec"]["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert trainer["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    shared = next(v for v in trainer["spec"]["volumes"] if v["name"] == "shared-memory")
    assert shared["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    assert "/dev/shm" in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_a_slice_of_a_gpu() -> None:
    """A MIG slice is asked for by the name that the device plugin gives it."""
    trainer = named(profile("everything"), "StatefulSet", "study-university-trainer")
    (container,) = trainer["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 1
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


@pytest.mark.parametrize("values", ["defaults", "hospital"])
def test_without_a_gpu_none_is_asked_for(values: str) -> None:
    """A CPU hospital needs no device plugin and no runtime class."""
    text = render_text(values)
    assert "nvidia" not in text
    assert "runtimeClassName" not in text
    assert "/dev/shm" not in text


def test_names_fit() -> None:
    """The longest release and hospital still make names of 63 characters."""
    objects = render(
        {
            "fullnameOverride": "a" * 26,
            "demo": {"hospitals": ["b" * 26]},
        }
    )
    for found in objects:
        assert len(found["metadata"]["name"]) <= 63, found["metadata"]["name"]


def test_openshift_chooses_the_user() -> None:
    """Null user and group leave both to the cluster, and nothing else changes."""
    objects = render({"pods": {"user": None, "group": None}})
    for _, pod in pods(objects):
        assert "runAsUser" not in str(pod)
        assert "fsGroup" not in pod["spec"]["securityContext"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_images() -> None:
    """Registry, tag and digest end up where they should; no tag is `latest`."""
    found = {c["image"] for _, _, c in every("everything")}
    mirror = "registry.hospital.example/mirror/fedward"
    assert f"{mirror}/trainer:0.1.1-cuda" in found
    assert f"{mirror}/link:0.1.1" in found
    assert any(image.startswith(f"{mirror}/edge@sha256:") for image in found)
    assert not [c["image"] for _, _, c in every("defaults") if c["image"].endswith(":latest")]


def test_tls_is_passed_through() -> None:
    """No Ingress or route opens a hospital's TLS: only the edge can ask for its certificate."""
    objects = profile("everything")
    ingress = named(objects, "Ingress", "study-edge")["metadata"]["annotations"]
    assert ingress["nginx.ingress.kubernetes.io/ssl-passthrough"] == "true"
    assert ingress["a"] == "b"
    plane = named(objects, "Ingress", "study-control-plane")["metadata"]["annotations"]
    assert plane == {"haproxy.org/ssl-passthrough": "true"}
    route = named(objects, "TLSRoute", "study-edge")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert route["spec"]["hostnames"] == ["fl.example.org"]


def test_apis_follow_the_cluster() -> None:
    """The oldest cluster gets the APIs it knows, newer ones the ones that stayed."""
    old, new = profile("defaults", kube="1.20.2"), profile("defaults", kube="1.33.0")
    for kind, before, since in (
        ("PodDisruptionBudget", "policy/v1beta1", "policy/v1"),
        ("CronJob", "batch/v1beta1", "batch/v1"),
    ):
        assert {o["apiVersion"] for o in kinds(old, kind)} == {before}
        assert {o["apiVersion"] for o in kinds(new, kind)} == {since}
    assert "persistentVolumeClaimRetentionPolicy" not in str(kinds(old, "StatefulSet"))
    for item in kinds(new, "StatefulSet"):
        retention = item["spec"]["persistentVolumeClaimRetentionPolicy"]
        assert retention["whenDeleted"] == "Retain"


def test_monitoring_only_where_it_is_known() -> None:
    """`auto` asks the cluster; no figure is read without TLS and a credential."""
    assert not kinds(render(), "ServiceMonitor")
    assert not kinds(render(), "PrometheusRule")
    objects = profile("everything")
    assert len(kinds(objects, "PrometheusRule")) == 1
    for monitor in kinds(objects, "ServiceMonitor"):
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["scheme"] == "https"
            assert "insecureSkipVerify" not in endpoint["tlsConfig"]
            assert endpoint.get("authorization") or endpoint["tlsConfig"].get("keySecret")
    dashboards = [o for o in kinds(objects, "ConfigMap") if "dashboards" in o["metadata"]["labels"]]
    assert len(dashboards) == 4


def test_a_hospital_that_is_not_enrolled_runs_nothing() -> None:
    """Before the bundle there is only the Job that makes the request."""
    objects = render(
        {
            "aggregator": {"enabled": False},
            "hospital": {
                "enabled": True,
                "name": "st-mary",
                "aggregator": {"address": "fl.example.org:443"},
                "data": {"existingClaim": "records", "train": ["notes.jsonl"]},
                "model": {"existingClaim": "models"},
            },
        }
    )
    assert {name.split()[0] for name, _ in pods(objects)} == {"Job", "CronJob"}


def test_existing_secrets_need_no_job() -> None:
    """With keys made elsewhere there is no Job, no Role, and the given names are mounted."""
    objects = render(
        {
            "certs": {"mode": "existing", "existingSecrets": {"edge": "our-edge"}},
            "demo": {"enabled": False},
        }
    )
    assert not kinds(objects, "Job")
    assert not kinds(objects, "Role")
    assert "our-edge" in str(named(objects, "Deployment", "fed-edge"))


def test_users_additions() -> None:
    """Labels, annotations, environment, volumes, placement: where people expect them."""
    pod = named(profile("everything"), "StatefulSet", "study-aggregator")["spec"]["template"]
    spec = pod["spec"]
    assert pod["metadata"]["labels"]["team"] == "oncology"
    assert pod["metadata"]["labels"]["tier"] == "centre"
    assert pod["metadata"]["annotations"]["example.org/owner"] == "research"
    assert spec["nodeSelector"] == {"disk": "ssd", "kubernetes.io/arch": "amd64"}
    assert [t["key"] for t in spec["tolerations"]] == ["dedicated", "centre"]
    assert spec["priorityClassName"] == "centre"
    assert spec["terminationGracePeriodSeconds"] == 90
    assert spec["imagePullSecrets"] == [{"name": "mirror"}]
    assert {"TZ", "LOG_LEVEL"} <= {v["name"] for v in spec["containers"][0]["env"]}
    assert "/extra" in {m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    assert spec["topologySpreadConstraints"][0]["maxSkew"] == 1


def test_several_edges_are_spread() -> None:
    """Three replicas go to three machines where there are three; one needs no rule."""
    several = named(profile("aggregator"), "Deployment", "fed-edge")["spec"]["template"]["spec"]
    (rule,) = several["topologySpreadConstraints"]
    assert rule["topologyKey"] == "kubernetes.io/hostname"
    one = named(profile("defaults"), "Deployment", "fed-edge")["spec"]["template"]["spec"]
    assert "topologySpreadConstraints" not in one
