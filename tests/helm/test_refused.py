"""Wrong values files: each is refused in words that name the key and what would be right."""

from typing import Any

import pytest
import yaml

from .chart import RefusedError, needs_helm, render

pytestmark = needs_helm

HOSPITAL = """
aggregator: {enabled: false}
hospital:
  enabled: true
  name: st-mary
  aggregator: {address: "fl.example.org:443"}
  data: {existingClaim: records, train: [notes.jsonl]}
  model: {existingClaim: models}
"""

# What somebody wrote; what stands in the refusal: the key, and what would be right.
WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "a mistyped group": ("agregator: {enabled: false}", ("agregator", '"aggregator"')),
    "a mistyped key": ("edge: {replica: 3}", ("edge", "replica", '"replicas"')),
    "a mistyped key far down": (
        "hospital: {trainer: {persistence: {storageclass: fast}}}",
        ("hospital.trainer.persistence", "storageclass", '"storageClass"'),
    ),
    "a text for a number": ("edge: {replicas: three}", ("edge.replicas", "integer")),
    "a number for a switch": ("demo: {enabled: 1}", ("demo.enabled", "boolean")),
    "a kind of Service that is none": (
        "edge: {service: {type: Loadbalancer}}",
        ("edge.service.type", '"LoadBalancer"'),
    ),
    "a port that is none": ("edge: {publicPort: 70000}", ("edge.publicPort", "65535")),
    "a size without a unit of its own": (
        "aggregator: {persistence: {size: 10 GB}}",
        ("aggregator.persistence.size", "pattern"),
    ),
    "a container without limits": (
        "aggregator: {resources: {limits: null}}",
        ("aggregator.resources", "limits"),
    ),
    "root": ("pods: {user: 0}", ("pods.user", "greater than or equal to 1")),
    "a password in the database's URL": (
        'controlPlane: {database: {url: "postgresql+psycopg://me:secret@db/fedward"}}',
        ("controlPlane.database.url", "pattern"),
    ),
    "a hash that is too short": (
        "hospital: {model: {sha256: abc}}",
        ("hospital.model.sha256", "pattern"),
    ),
    "a certs mode that is none": ("certs: {mode: certmanager}", ("certs.mode", '"cert-manager"')),
    "a hospital's name with a space": (
        "hospital: {enabled: true, name: St Mary}",
        ("hospital.name", "pattern"),
    ),
    "two demo hospitals of one name": (
        "demo: {hospitals: [hospital-a, hospital-a]}",
        ("demo.hospitals", "unique"),
    ),
    "a request without its fingerprint": (
        'certs: {enrol: {st-mary: {request: "{}"}}}',
        ("certs.enrol.st-mary", "fingerprint"),
    ),
    "nothing at all": (
        "aggregator: {enabled: false}",
        ("aggregator.enabled", "hospital.enabled", "set one of them to true"),
    ),
    "a hospital without a name": (
        HOSPITAL.replace("st-mary", '""'),
        ("hospital.name", "such as st-mary"),
    ),
    "a hospital without an aggregator": (
        HOSPITAL.replace("fl.example.org:443", ""),
        ("hospital.aggregator.address", "such as fl.example.org:443"),
    ),
    "two aggregators": (
        HOSPITAL.replace("enabled: false", "enabled: true"),
        ("hospital.aggregator.address", "leave it empty"),
    ),
    "two sources of data": (
        HOSPITAL.replace("existingClaim: records", "existingClaim: records, hostPath: /srv"),
        ("hospital.data", "exactly one of"),
    ),
    "no file to train on": (
        HOSPITAL.replace("train: [notes.jsonl]", "train: []"),
        ("hospital.data.train", "such as [notes.jsonl]"),
    ),
    "held-out rows that are trained on": (
        HOSPITAL.replace("train: [notes.jsonl]", "train: [a.csv], heldout: [a.csv]"),
        ("hospital.data.heldout", '"a.csv"', "hospital.data.train"),
    ),
    "no base model": (
        HOSPITAL.replace("model: {existingClaim: models}", "model: {}"),
        ("hospital.model", "give one of"),
    ),
    "a hub without a model": (
        HOSPITAL.replace("existingClaim: models", "hub: {enabled: true}"),
        ("hospital.model.hub.id", "such as"),
    ),
    "a hub whose word is taken for it": (
        HOSPITAL.replace("existingClaim: models", "hub: {enabled: true, id: example/model}"),
        ("hospital.model.sha256", "the study's model.sha256"),
    ),
    "CUDA without a GPU": (
        HOSPITAL + "  trainer: {device: cuda}\n",
        ("hospital.trainer.device", "hospital.gpu.count", "at least one GPU"),
    ),
    "GPUs that nobody uses": (
        HOSPITAL + "  trainer: {device: cpu}\n  gpu: {count: 2}\n",
        ("hospital.gpu.count = 2", "device to auto"),
    ),
    "several slices of a GPU": (
        HOSPITAL + "  gpu: {count: 2, resource: nvidia.com/mig-3g.40gb}\n",
        ("hospital.gpu.count = 2 of nvidia.com/mig-3g.40gb", "a larger slice"),
    ),
    "a bundle that nobody vouched for": (
        HOSPITAL + '  enrolment: {bundle: "{}"}\n',
        ("hospital.enrolment.caFingerprint", "read the CA's fingerprint aloud"),
    ),
    "existing Secrets that are not named": (
        HOSPITAL + "certs: {mode: existing}\n",
        ("hospital.existingSecrets.link", "certs.mode"),
    ),
    "an Ingress without a name": (
        "edge: {ingress: {enabled: true}}",
        ("edge.hostname", "such as fl.example.org"),
    ),
    "a TLSRoute without a Gateway": (
        "edge: {hostname: fl.example.org, tlsRoute: {enabled: true}}",
        ("edge.tlsRoute.parentRefs", "name the Gateway"),
    ),
    "a node port inside the cluster": (
        "edge: {service: {nodePort: 30443}}",
        ("edge.service.nodePort", "NodePort or LoadBalancer"),
    ),
    "cert-manager without an issuer": (
        "certs: {mode: cert-manager}",
        ("certs.certManager.issuerRef.name", "name the Issuer"),
    ),
    "a database that the policy hides": (
        'controlPlane: {database: {url: "postgresql+psycopg://me@db/fedward"}}',
        ("networkPolicy.database", "such as"),
    ),
    "a password for a file": (
        "controlPlane: {database: {passwordSecret: db}}",
        ("controlPlane.database.passwordSecret", "give the URL"),
    ),
    "a demo hospital enrolled twice": (
        'certs: {enrol: {hospital-a: {request: "{}", fingerprint: "0"}}}',
        ("certs.enrol.hospital-a", "take it out"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(name: str) -> None:
    """The refusal names the key and what would be right."""
    text, words = WRONG[name]
    values: dict[str, Any] = yaml.safe_load(text)
    with pytest.raises(RefusedError) as refused:
        render(values)
    for word in words:
        assert word in str(refused.value)


def test_several_faults_are_told_at_once() -> None:
    """Nobody mends one key to be told of the next."""
    with pytest.raises(RefusedError) as refused:
        render({"aggregator": {"enabled": False}, "hospital": {"enabled": True}})
    for key in ("hospital.name", "hospital.aggregator.address", "hospital.data", "hospital.model"):
        assert key in str(refused.value)
