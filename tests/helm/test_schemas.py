"""Every object against Kubernetes' own schemas, strictly: an unknown field is an error."""

from typing import Any

import pytest

from .chart import PROFILES, needs_helm, profile

kubernetes_validate: Any = pytest.importorskip(
    "kubernetes_validate", reason="no kubernetes-validate, which carries Kubernetes' schemas"
)
pytestmark = needs_helm

NEWEST = ".".join(kubernetes_validate.latest_version().split(".")[:2])
# Kinds of extensions; their schemas are not Kubernetes' own.
EXTENSIONS = ("monitoring.coreos.com", "gateway.networking.k8s.io", "cert-manager.io")


@pytest.mark.parametrize("values", PROFILES)
@pytest.mark.parametrize("version", ["1.25", "1.29", "1.33", NEWEST])
def test_objects_are_valid(values: str, version: str) -> None:
    """As rendered for that version."""
    checked = 0
    for found in profile(values, kube=f"{version}.0"):
        if found["apiVersion"].split("/")[0] not in EXTENSIONS:
            kubernetes_validate.validate(found, version, strict=True)
            checked += 1
    assert checked >= 10


def test_an_unknown_field_is_an_error() -> None:
    """The check itself is awake."""
    found = dict(profile("defaults")[0], unknown=1)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, NEWEST, strict=True)
