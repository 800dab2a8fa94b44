"""Network policies as arrows: these and no others."""

from collections.abc import Iterator
from typing import Any

import pytest

from .chart import PROFILES, Object, kinds, named, needs_helm, pods, profile

pytestmark = needs_helm

Arrow = tuple[str, str, str]  # from, to, ports


def label(peer: Object) -> str:
    """Who a peer is, in a word."""
    if "ipBlock" in peer:
        return str(peer["ipBlock"]["cidr"])
    labels = peer.get("podSelector", {}).get("matchLabels", {})
    who = labels.get("app.kubernetes.io/component")
    if who:
        site = labels.get("fedward.dev/site")
        return f"{who} {site}" if site else str(who)
    return str(
        labels.get("k8s-app") or labels.get("app.kubernetes.io/name") or peer["namespaceSelector"]
    )


def arrows(objects: list[Object], direction: str) -> Iterator[Arrow]:
    """What the policies allow, `Egress` or `Ingress`."""
    way = "to" if direction == "Egress" else "from"
    for policy in kinds(objects, "NetworkPolicy"):
        own = label({"podSelector": policy["spec"]["podSelector"]})
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["spec"].get(direction.lower()) or []:
            ports = ",".join(str(port["port"]) for port in rule["ports"])
            for peer in rule.get(way) or [{"ipBlock": {"cidr": "anybody"}}]:
                ends = (own, label(peer)) if direction == "Egress" else (label(peer), own)
                yield (*ends, ports)


DNS = "53,53"


def test_arrows_outwards() -> None:
    """Nothing of a default release connects to anything else than this."""
    assert set(arrows(profile("defaults"), "Egress")) == {
        ("aggregator", "control-plane", "9443"),
        ("aggregator", "kube-dns", DNS),
        ("edge", "aggregator", "9092"),
        ("edge", "control-plane", "9443"),
        ("edge", "kube-dns", DNS),
        ("link hospital-a", "edge", "8443"),
        ("link hospital-a", "trainer hospital-a", "9095"),
        ("link hospital-a", "kube-dns", DNS),
        ("link hospital-b", "edge", "8443"),
        ("link hospital-b", "trainer hospital-b", "9095"),
        ("link hospital-b", "kube-dns", DNS),
        ("certs", "0.0.0.0/0", "443,6443"),
        ("certs", "kube-dns", DNS),
        ("test", "control-plane", "9443"),
        ("test", "kube-dns", DNS),
    }


def test_arrows_inwards() -> None:
    """Nothing of a default release is reached by anything else than this."""
    assert set(arrows(profile("defaults"), "Ingress")) == {
        ("anybody", "edge", "8443"),
        ("prometheus", "edge", "8405"),
        ("edge", "aggregator", "9092"),
        ("aggregator", "control-plane", "9443"),
        ("edge", "control-plane", "9443"),
        ("test", "control-plane", "9443"),
        ("prometheus", "control-plane", "9443"),
        ("link hospital-a", "trainer hospital-a", "9095"),
        ("link hospital-b", "trainer hospital-b", "9095"),
    }


@pytest.mark.parametrize("values", PROFILES)
def test_a_trainer_reaches_nobody(values: str) -> None:
    """Not even DNS: data cannot leave by a name that is looked up."""
    assert not [a for a in arrows(profile(values), "Egress") if a[0].startswith("trainer")]


@pytest.mark.parametrize("values", ["defaults", "everything"])
def test_a_trainer_is_reached_by_its_own_link(values: str) -> None:
    """One hospital's link cannot speak to another's trainer."""
    for source, target, _ in arrows(profile(values), "Ingress"):
        if target.startswith("trainer"):
            assert source == target.replace("trainer", "link")


def test_one_institution() -> None:
    """A hospital's own release: its link to the proxy, to its trainer and to DNS; nothing in."""
    objects = profile("hospital")
    assert set(arrows(objects, "Egress")) == {
        ("link st-mary", "10.1.1.1/32", "3128"),
        ("link st-mary", "trainer st-mary", "9095"),
        ("link st-mary", "kube-dns", DNS),
        ("certs", "0.0.0.0/0", "443,6443"),
        ("certs", "kube-dns", DNS),
    }
    assert set(arrows(objects, "Ingress")) == {("link st-mary", "trainer st-mary", "9095")}


def test_without_a_proxy() -> None:
    """The link may reach the edge's addresses on its port; 8443 is a pod behind a Service."""
    out = [a for a in arrows(profile("gpu"), "Egress") if a[0] == "link university"]
    assert ("link university", "0.0.0.0/0", "443,8443") in out


@pytest.mark.parametrize("values", PROFILES)
def test_all_else_is_denied(values: str) -> None:
    """Every pod of the release is selected by a policy that opens nothing."""
    objects = profile(values)
    prefix = "study" if values == "everything" else "fed"
    deny = named(objects, "NetworkPolicy", f"{prefix}-default-deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    assert "egress" not in deny
    wanted = deny["podSelector"]["matchLabels"].items()
    for name, pod in pods(objects):
        assert wanted <= pod["metadata"]["labels"].items(), name


@pytest.mark.parametrize("values", PROFILES)
def test_every_pod_has_arrows_of_its_own(values: str) -> None:
    """A component that nobody drew arrows for would be cut off without a word."""
    objects = profile(values)
    selectors: list[dict[str, Any]] = [
        policy["spec"]["podSelector"]["matchLabels"]
        for policy in kinds(objects, "NetworkPolicy")
        if not policy["metadata"]["name"].endswith("-default-deny")
    ]
    for name, pod in pods(objects):
        labels = pod["metadata"]["labels"].items()
        assert [s for s in selectors if s.items() <= labels], name


def test_metrics_are_not_open_with_the_edge() -> None:
    """`networkPolicy.hospitals` narrows 8443; 8405 stays Prometheus' alone."""
    inwards = set(arrows(profile("everything"), "Ingress"))
    assert ("192.0.2.0/24", "edge", "8443") in inwards
    assert ("link", "edge", "8443") in inwards
    assert ("anybody", "edge", "8443") not in inwards
    assert {a[0] for a in inwards if a[2] == "8405"} == {"prometheus"}
