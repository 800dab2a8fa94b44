"""Gives every part of a release its keys, as Secrets. Runs before an installation, an upgrade, and
every night.

    python provide.py plan.json

    plan.json --> this --> certs.local, certs.enrolment (in a folder in memory)
    Secrets  <-->      --> Secrets, one for each part; ConfigMap for what is public

What is there is kept: keys are identities. What nears its end is renewed. The CA's own Secret is
written last, so a run that breaks off is repeated without harm: a leaf whose CA was not kept is
made again.
"""

import datetime as dt
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cluster import ChangedMeanwhileError, Cluster, ClusterError, Stored
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from certs import CA, CertError, keys
from certs.enrolment import Study as EnrolmentStudy
from certs.enrolment import approve, install, make_request, revoke
from certs.files import write_atomic, write_key
from certs.install import ENROLMENT_FILE
from certs.local import FederationPaths, make_federation, site_paths
from certs.registry import Registry
from certs.request import parse_request

WORK = Path("/work")
TRIES = 5
CERT_MANAGER_SECONDS = 240.0
# Link and trainer pin each other's certificate, in one namespace of one cluster. To change the pair
# delete both files from both Secrets and run the Job.
WIRE_LIFETIME = dt.timedelta(days=3650)

LINK_KEYS = ("node.key", "node.pub", "client.crt", "client.key", "client.pem", "ca.crt")
TRAINER_KEYS = ("signing.key", "signing.pub", "study-signing.pub")
SERVER_KEYS = ("server.crt", "server.key", "server.pem", "ca.crt", "crl.pem")
CLIENT_KEYS = ("client.crt", "client.key", "client.pem", "ca.crt")
TOKENS = ("coordinator.token", "operator.token", "aggregator.token")


class Provider:
    """One run: what was read, the folder, what is written."""

    def __init__(self, cluster: Cluster, prefix: str, work: Path) -> None:
        self._cluster, self._prefix, self.work = cluster, prefix, work
        self._read: dict[tuple[str, str], Stored] = {}
        self.written: list[str] = []

    def name(self, part: str) -> str:
        """What a part's object is called."""
        return f"{self._prefix}-{part}"

    def stored(self, kind: str, part: str) -> Stored:
        """A part's object as it is in the cluster."""
        if (kind, part) not in self._read:
            self._read[kind, part] = self._cluster.read(kind, self.name(part))
        return self._read[kind, part]

    def restore(self, part: str, folder: Path, *, under: str = "") -> None:
        """Put a Secret's files (those that begin with `under`) into `folder`."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, data in self.stored("secrets", part).files.items():
            if name.startswith(under):
                write_key(folder / name.removeprefix(under), data)

    def store(
        self,
        kind: str,
        part: str,
        files: dict[str, bytes],
        annotations: dict[str, str] | None = None,
    ) -> None:
        """Write a part's object if it differs."""
        if self._cluster.write(self.stored(kind, part), files, annotations or {}):
            self.written.append(f"{kind}/{self.name(part)}")


def federation(plan: dict[str, Any], provider: Provider) -> None:
    """The aggregator's side: a CA, the servers, this release's hospitals, and those elsewhere."""
    sites, work = list(plan["sites"]), provider.work
    provider.restore("ca", work / "ca", under="ca.")
    provider.restore("ca", work / "registry", under="registry.")
    for part in ("aggregator", "control-plane", "coordinator", "operator", "edge"):
        provider.restore(part, work / part)
    for site in sites:
        for half in ("link", "trainer"):
            provider.restore(f"{site}-{half}", work / "sites" / site)

    paths = make_federation(work, sites, plan["server_names"])
    ca, registry = CA.load(paths.ca_folder), Registry(paths.registry)
    edge = _edge(ca, paths, plan["server_names"])
    _enrol(plan, ca, registry, paths, provider)
    _revoke(plan["revoke"], ca, registry)
    ca.write_public_files()

    trust: dict[str, dict[str, bytes]] = {}
    roots = ca.trust_pem
    if plan["cert_manager"]:
        trust, roots = _from_cert_manager(provider, roots)
    for part, folder in (
        ("aggregator", paths.aggregator.folder),
        ("control-plane", paths.control_plane.folder),
        ("edge", edge),
    ):
        write_atomic(folder / "ca.crt", roots)
        write_atomic(folder / "crl.pem", paths.crl.read_bytes())
        files = _files(folder, SERVER_KEYS) | trust.get(part, {})
        if part == "aggregator":
            files |= _files(folder, ("study-signing.key", "study-signing.pub"))
        provider.store("secrets", part, files)
    for client in (paths.coordinator, paths.operator):
        write_atomic(client.ca, roots)
        provider.store("secrets", client.folder.name, _files(client.folder, CLIENT_KEYS))
    active = registry.sites()
    for site in sites:
        if active[site].revoked:
            continue
        write_atomic(paths.sites[site].ca, roots)
        _wire(paths.sites[site].folder)
        _store_site(provider, site, paths.sites[site].folder)
    _store_tokens(provider)
    _store_public(provider, paths, plan["enrol"], registry, edge, roots, ca.fingerprint)
    provider.store("secrets", "ca", _ca_files(paths))


def hospital(plan: dict[str, Any], provider: Provider) -> None:
    """A hospital's side: its keys and request; with a bundle, what the coordinator sent back."""
    site, folder = plan["site"], provider.work / "site"
    for half in ("link", "trainer"):
        provider.restore(f"{site}-{half}", folder)
    if not plan["bundle"] and (folder / ENROLMENT_FILE).exists():
        # Without a bundle the chart has no pods: an upgrade would end a hospital that works.
        raise ClusterError(
            f"{site} is enrolled, but hospital.enrolment.bundle is empty: give it and its "
            "caFingerprint at each upgrade, as `helm get values` shows them; to enrol anew, delete "
            "the Secrets "
            f"{provider.name(f'{site}-link')} and {provider.name(f'{site}-trainer')} first"
        )
    for name, data in provider.stored("configmaps", f"{site}-request").files.items():
        write_atomic(folder / name, data)
    before = folder / "request.json"
    if not before.exists():
        made = make_request(folder, site)
        fingerprint = made.fingerprint
    else:
        fingerprint = parse_request(
            before.read_bytes(), before, now=dt.datetime.now(dt.UTC)
        ).fingerprint
    _wire(folder)
    # The keys before the request: a request whose keys were lost could never be used.
    _store_site(provider, site, folder)
    provider.store(
        "configmaps",
        f"{site}-request",
        _files(folder, ("request.json",)) | {"fingerprint": f"{fingerprint}\n".encode()},
    )
    print(f"{site}: the fingerprint of this hospital's request, to be read aloud: {fingerprint}")
    if not plan["bundle"]:
        print(f"{site}: no bundle yet; send request.json to the coordinator")
        return
    bundle = folder / "bundle.json"
    write_atomic(bundle, plan["bundle"].encode())
    installed = install(bundle, folder, ca_fingerprint=plan["ca_fingerprint"])
    _store_site(provider, site, folder)
    print(
        f"{site}: enrolled until {installed.not_after:%Y-%m-%d}; the aggregator is at "
        f"{installed.aggregator}"
    )


def _edge(ca: CA, paths: FederationPaths, names: Iterable[str]) -> Path:
    """A pair of its own for the edge: of all servers it is the one that strangers can reach."""
    folder, wanted = paths.folder / "edge", set(names)
    folder.mkdir(exist_ok=True, mode=0o700)
    try:
        leaf = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
        alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        left = leaf.not_valid_after_utc - dt.datetime.now(dt.UTC)
        leaf.verify_directly_issued_by(ca.issuing)
        keys.load_certificate_key(folder / "server.key")
        good = {str(name.value) for name in alternative} == wanted and left > life / 3
    except Exception:  # noqa: BLE001 - whatever is wrong with it, a new one is right
        good = False
    if not good:
        ca.issue_server(sorted(wanted), lifetime=dt.timedelta(days=30)).write(folder, "server")
    return folder


def _enrol(
    plan: dict[str, Any], ca: CA, registry: Registry, paths: FederationPaths, provider: Provider
) -> None:
    """Approve each hospital's request once; renew when its certificate nears its end."""
    study = EnrolmentStudy(
        keys.load_signing_key(paths.study_signing_key).public_key(), plan["address"]
    )
    for site, item in plan["enrol"].items():
        request = item["request"].encode()
        digest = hashlib.sha256(request).hexdigest()
        known = registry.sites().get(site)
        bundle = provider.stored("configmaps", f"bundle-{site}")
        if site in plan["revoke"]:
            continue
        same = bundle.annotations.get("fedward.dev/request") == digest
        life = dt.timedelta(days=int(item.get("days") or 90))
        if known and not known.revoked and same and not _near_end(known.not_after, life):
            continue
        path = paths.folder / f"request-{site}.json"
        write_atomic(path, request)
        approval = approve(
            ca,
            path,
            registry,
            study,
            fingerprint=item.get("fingerprint", ""),
            renew=bool(known and not known.revoked),
            readmit=bool(known and known.revoked),
            lifetime=life,
            actor="helm",
        )
        if approval.site != site:
            raise ClusterError(
                f"certs.enrol.{site}: the request in it is of {approval.site}; put it there"
            )
        provider.store(
            "configmaps",
            f"bundle-{site}",
            {"bundle.json": approval.bundle},
            {"fedward.dev/request": digest},
        )
        print(f"{site}: enrolled until {approval.not_after:%Y-%m-%d}")


def _near_end(not_after: str, life: dt.timedelta) -> bool:
    end = dt.datetime.fromisoformat(not_after.replace("Z", "+00:00"))
    return end - dt.datetime.now(dt.UTC) < life / 3


def _revoke(names: Iterable[str], ca: CA, registry: Registry) -> None:
    for site in names:
        entry = registry.sites().get(site)
        if entry is not None and not entry.revoked:
            revoke(ca, site, registry, reason="certs.revoke in the chart's values", actor="helm")
            print(f"{site}: revoked")


def _from_cert_manager(
    provider: Provider, roots: bytes
) -> tuple[dict[str, dict[str, bytes]], bytes]:
    """The servers' pairs from cert-manager's Secrets, and every root that a client needs."""
    until = time.monotonic() + CERT_MANAGER_SECONDS
    found: dict[str, dict[str, bytes]] = {}
    for part in ("aggregator", "edge", "control-plane"):
        while True:
            made = provider._cluster.read("secrets", f"{provider._prefix}-tls-{part}").files
            if made.get("tls.crt") and made.get("tls.key"):
                break
            if time.monotonic() > until:
                raise ClusterError(
                    f"cert-manager has not made the Secret {provider._prefix}-tls-{part}; ask "
                    f"`kubectl describe certificate {provider._prefix}-tls-{part}`, and see "
                    "certs.certManager.issuerRef"
                )
            time.sleep(2)
        key, chain = made["tls.key"], made["tls.crt"]
        found[part] = {"server.key": key, "server.crt": chain, "server.pem": key + chain}
        issuer = made.get("ca.crt", b"")
        if issuer and issuer not in roots:
            roots += issuer if issuer.endswith(b"\n") else issuer + b"\n"
    for files in found.values():
        files["ca.crt"] = roots
    return found, roots


def _wire(folder: Path) -> None:
    """The pairs with which link and trainer know each other, made once."""
    if all((folder / f"{name}.{end}").exists() for name in ("link", "trainer") for end in _ENDS):
        return
    for name in ("link", "trainer"):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedward {name}")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + WIRE_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_key(folder / f"{name}.key", pem)
        write_atomic(folder / f"{name}.crt", certificate.public_bytes(Encoding.PEM))


_ENDS = ("crt", "key")


def _store_site(provider: Provider, site: str, folder: Path) -> None:
    """Each half gets its own: the link no signing key, the trainer no node key."""
    names = site_paths(folder, site)
    link = _files(folder, (*LINK_KEYS, "link.key", "link.crt", "trainer.crt", ENROLMENT_FILE))
    trainer = _files(folder, (*TRAINER_KEYS, "trainer.key", "trainer.crt", "link.crt"))
    if not names.client.key.exists() or not names.signing_key.exists():
        raise ClusterError(f"{site}: its keys are incomplete; restore its Secrets from the backup")
    provider.store("secrets", f"{site}-trainer", trainer)
    provider.store("secrets", f"{site}-link", link)


def _store_tokens(provider: Provider) -> None:
    files = dict(provider.stored("secrets", "tokens").files)
    for name in TOKENS:
        files.setdefault(name, f"{secrets.token_urlsafe(32)}\n".encode())
    provider.store("secrets", "tokens", files)


def _store_public(
    provider: Provider,
    paths: FederationPaths,
    elsewhere: Iterable[str],
    registry: Registry,
    edge: Path,
    roots: bytes,
    fingerprint: str,
) -> None:
    """What anybody may see: the list of hospitals, certificates, roots, the revocation list."""
    files = {
        "registry.json": registry.path.read_bytes(),
        "ca.crt": roots,
        "ca.fingerprint": f"{fingerprint}\n".encode(),
        "crl.pem": paths.crl.read_bytes(),
        "study-signing.pub": paths.study_public.read_bytes(),
    }
    for name, path in (
        ("aggregator.crt", paths.aggregator.cert),
        ("edge.crt", edge / "server.crt"),
        *((f"site-{site}.crt", own.client.cert) for site, own in paths.sites.items()),
    ):
        if path.exists():
            files[name] = path.read_bytes()
    # Not every name in the list of hospitals: the Job may read the bundles of `certs.enrol` only.
    for name in elsewhere:
        bundle = provider.stored("configmaps", f"bundle-{name}").files.get("bundle.json")
        if bundle:
            body = json.loads(bundle)
            files[f"site-{name}.crt"] = body["certificate"].encode()
    provider.store("configmaps", "public", files)


def _ca_files(paths: FederationPaths) -> dict[str, bytes]:
    files = {}
    for prefix, folder in (("ca.", paths.ca_folder), ("registry.", paths.registry)):
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                files[f"{prefix}{path.name}"] = path.read_bytes()
    return files


def _files(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def main() -> int:
    """Provide; again from the start when another run wrote at the same time."""
    os.umask(0o077)
    plan = json.loads(Path(sys.argv[1]).read_text())
    cluster = Cluster(plan["namespace"], plan["labels"])
    for attempt in range(TRIES):
        provider = Provider(cluster, plan["prefix"], WORK / f"try-{attempt}")
        try:
            if "federation" in plan:
                federation(plan["federation"], provider)
            else:
                hospital(plan["hospital"], provider)
        except ChangedMeanwhileError as error:
            print(f"{error}; once more", file=sys.stderr)
            time.sleep(1 + attempt)
            continue
        except CertError as error:
            hint = f"\nhint: {error.hint}" if error.hint else ""
            print(f"error: {error}{hint}", file=sys.stderr)
            return error.exit_code
        except ClusterError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print("\n".join(f"wrote {name}" for name in provider.written) or "nothing to change")
        return 0
    print("error: the Secrets are being changed by something else all the time", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
