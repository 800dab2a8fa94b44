"""Secrets and ConfigMaps of one namespace, through the cluster's API server.

Four calls of a large API: read one object, make one, change one that is still as it was read.
"""

import base64
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ClusterError(Exception):
    """The API server refuses or does not answer; the text is a sentence."""


class ChangedMeanwhileError(ClusterError):
    """Somebody else wrote the object between our reading and our writing."""


@dataclass
class Stored:
    """A Secret or ConfigMap: its files, and the version that they were read at."""

    kind: str  # secrets, configmaps
    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    version: str = ""  # empty: not there yet


class Cluster:
    """The namespace that this pod runs in."""

    def __init__(self, namespace: str, labels: dict[str, str], account: Path = ACCOUNT) -> None:
        self._labels = labels
        self._client = httpx.Client(
            base_url=f"https://kubernetes.default.svc/api/v1/namespaces/{namespace}",
            headers={"authorization": f"Bearer {(account / 'token').read_text().strip()}"},
            verify=ssl.create_default_context(cafile=str(account / "ca.crt")),
            timeout=20.0,
            trust_env=False,  # the API server is never behind a proxy
        )
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), "443"
        if host:  # set by the kubelet for every pod: spares a name to look up
            port = os.environ.get("KUBERNETES_SERVICE_PORT", port)
            host = f"[{host}]" if ":" in host else host
            self._client.base_url = httpx.URL(
                f"https://{host}:{port}/api/v1/namespaces/{namespace}"
            )

    def read(self, kind: str, name: str) -> Stored:
        """The object, or an empty one without a version if there is none.

        Raises:
            ClusterError: no answer, or no right to read it.
        """
        answer = self._call("GET", f"/{kind}/{name}", (200, 404))
        if answer.status_code == 404:
            return Stored(kind, name)
        body = answer.json()
        if kind == "secrets":
            files = {
                key: base64.b64decode(value) for key, value in (body.get("data") or {}).items()
            }
        else:
            files = {key: value.encode() for key, value in (body.get("data") or {}).items()}
        metadata = body["metadata"]
        return Stored(
            kind, name, files, metadata.get("annotations") or {}, metadata["resourceVersion"]
        )

    def write(self, before: Stored, files: dict[str, bytes], annotations: dict[str, str]) -> bool:
        """Make the object, or change it if anything differs; whether it was written.

        Raises:
            ChangedMeanwhileError: it is no longer as it was read.
            ClusterError: no answer, or no right.
        """
        annotations = before.annotations | annotations
        if before.version and (before.files, before.annotations) == (files, annotations):
            return False
        metadata: dict[str, Any] = {
            "name": before.name,
            "labels": self._labels,
            "annotations": annotations,
        }
        body: dict[str, Any] = {"apiVersion": "v1", "metadata": metadata}
        if before.kind == "secrets":
            body |= {"kind": "Secret", "type": "Opaque"}
            body["data"] = {key: base64.b64encode(data).decode() for key, data in files.items()}
        else:
            body |= {"kind": "ConfigMap"}
            body["data"] = {key: data.decode() for key, data in files.items()}
        if before.version:
            metadata["resourceVersion"] = before.version
            self._call("PUT", f"/{before.kind}/{before.name}", (200,), body)
        else:
            self._call("POST", f"/{before.kind}", (201,), body)
        return True

    def _call(
        self, method: str, path: str, good: tuple[int, ...], body: dict[str, Any] | None = None
    ) -> httpx.Response:
        try:
            answer = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ClusterError(
                f"the cluster's API server does not answer ({error}); if a network policy is in "
                "the way, see certs.apiServer in values.yaml"
            ) from error
        if answer.status_code == 409:
            raise ChangedMeanwhileError(f"{path} was changed meanwhile")
        if answer.status_code not in good:
            raise ClusterError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer
