"""How a hospital joins, in three steps and with two comparisons by telephone.

    hospital     make_request(folder, "hospital-a")     keys stay here; a fingerprint is shown
    coordinator  approve(ca, request, ..., fingerprint) one bundle, without a secret
    hospital     install(bundle, folder)                checked against its own keys; the CA's
                                                        fingerprint is shown

Any channel will do for the two files: they hold public keys and signatures. The fingerprints need
a channel that an attacker does not hold. Renewal repeats the steps with the same keys and needs no
telephone, because the keys are known.
"""

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from certs import audit, keys
from certs._x509 import stamp, utc_now
from certs.bundle import Study, bundle_for
from certs.ca import CA, LEAF_LIFETIME
from certs.files import locked, make_folder, read_limited, write_atomic, write_key
from certs.fingerprints import same_fingerprint
from certs.install import Installed, install
from certs.local import SitePaths, site_paths
from certs.names import check_site
from certs.registry import Registry, SiteEntry, continued, new_entry, owner_of
from certs.request import Request, build_request, parse_request, text_digest
from certs.sentences import refuse

__all__ = [
    "Approval",
    "Installed",
    "MadeRequest",
    "Revocation",
    "Study",
    "approve",
    "install",
    "make_request",
    "revoke",
]

REQUEST_FILE = "request.json"


@dataclass(frozen=True)
class MadeRequest:
    """A request on disk, and the digits that the hospital reads aloud."""

    site: str
    path: Path
    fingerprint: str


@dataclass(frozen=True)
class Approval:
    """A site that may take part now."""

    site: str
    bundle: bytes
    node_key: str  # one OpenSSH line, to be registered with the SuperLink
    serial: str  # hexadecimal
    not_after: dt.datetime
    renewed: bool  # False: the node key must be registered with the SuperLink


@dataclass(frozen=True)
class Revocation:
    """A site that may take part no longer."""

    site: str
    when: str
    node_key: str  # one OpenSSH line, to be unregistered from the SuperLink
    serials: tuple[str, ...]


def make_request(
    folder: Path, site: str, *, new_keys: bool = False, now: dt.datetime | None = None
) -> MadeRequest:
    """At the hospital: make the site's keys if there are none, and a request beside them.

    Asking again with the same keys gives the same fingerprint; that is how a renewal begins.

    Args:
        folder: the site's own, made 0700 when missing. Private keys are written 0600 and never
            leave it.
        site: the name that the hospital and the coordinator agreed on.
        new_keys: put the old keys aside (in `retired-<time>/`) and begin anew, as after a
            revocation.
        now: the time, for tests.

    Raises:
        CertError: `name-site`, `enrol-other-site`, `enrol-half`, or a key that is damaged.
    """
    now = now or utc_now()
    paths = site_paths(make_folder(folder), check_site(site))
    request = folder / REQUEST_FILE
    with locked(folder):
        _same_site(request, paths, now)
        if new_keys:
            _retire(paths, request, now)
        if not request.exists():
            _make_keys(paths)
        for path in (paths.client.key, paths.node_key, paths.signing_key):
            if not path.exists():
                raise refuse("enrol-half", folder=folder, missing=path.name)
        client = keys.load_certificate_key(paths.client.key)
        if not isinstance(client, ec.EllipticCurvePrivateKey):
            raise refuse("key-kind", file=paths.client.key, what=keys.describe(client))
        node, signing = keys.load_node_key(paths.node_key), keys.load_signing_key(paths.signing_key)
        text = build_request(site, client, node, signing, now=now)
        write_atomic(request, text)
    return MadeRequest(site, request, parse_request(text, request, now=now).fingerprint)


def read_request(path: Path, *, now: dt.datetime | None = None) -> Request:
    """A request file with its proofs checked, to show its site and fingerprint before approving.

    Raises:
        CertError: `file-*`, `request-*`, `name-site`.
    """
    return parse_request(read_limited(path), path, now=now or utc_now())


def approve(
    ca: CA,
    request_path: Path,
    registry: Registry,
    study: Study,
    *,
    fingerprint: str = "",
    renew: bool = False,
    readmit: bool = False,
    lifetime: dt.timedelta = LEAF_LIFETIME,
    actor: str = "coordinator",
    now: dt.datetime | None = None,
) -> Approval:
    """At the coordinator: enrol a site, or renew its certificate; returns the bundle to send back.

    Args:
        ca: signs the certificate and the bundle.
        request_path: the file that came from the hospital.
        registry: where the site's keys are entered.
        study: what the hospital is told.
        fingerprint: as the hospital read it aloud; may be left out only to renew.
        renew: the site is enrolled, and asks again with the same three keys.
        readmit: the site was revoked, and comes back with three new keys.
        lifetime: of the certificate.
        actor: for the audit log.
        now: the time, for tests.

    Raises:
        CertError: `request-*`, `fingerprint*`, `site-*`, `key-of-other-site`, or `bundle-fields`
            for an address that cannot be one; nothing is changed.
    """
    now = now or utc_now()
    study.check("the study")
    data = read_limited(request_path)
    request = parse_request(data, request_path, now=now)
    with registry.changing() as sites:
        known = sites.get(request.site)
        _judge_keys(request, request_path, sites)
        _judge_state(request, known, renew=renew, readmit=readmit)
        _judge_fingerprint(request, request_path, fingerprint, needed=not renew)
        leaf = ca.sign_request(request.csr, request.site, lifetime=lifetime, now=now)
        entry = new_entry(request.site, request.keys, leaf, now)
        if known is not None:
            entry = continued(known, entry, renewed=renew)
        bundle = bundle_for(ca, leaf, request, study, now)
        act = "renew" if renew else "readmit" if known else "approve"
        details = {"serial": leaf.serial, "request": text_digest(data)}
        details |= {"fingerprint": request.fingerprint, "not_after": stamp(leaf.not_after)}
        # The log before the registry: an act without an entry shows; an entry without an act
        # would not.
        audit.record(registry.folder, act, request.site, actor=actor, details=details, now=now)
        sites[request.site] = entry
    return Approval(request.site, bundle, request.node_line, leaf.serial, leaf.not_after, renew)


def revoke(
    ca: CA,
    site: str,
    registry: Registry,
    *,
    reason: str = "",
    actor: str = "coordinator",
    now: dt.datetime | None = None,
) -> Revocation:
    """At the coordinator: take a site's certificates, node key and signature out of trust.

    Doing it again finishes what a crash left undone, and keeps the first moment.

    Raises:
        CertError: `site-unknown`, `ca-offline`, `key-*`.
    """
    now = now or utc_now()
    with registry.changing() as sites:
        entry = sites.get(site)
        if entry is None:
            raise refuse("site-unknown", site=site)
        if not entry.revoked:
            details = {"reason": reason, "serials": " ".join(entry.serials)}
            audit.record(registry.folder, "revoke", site, actor=actor, details=details, now=now)
            entry.revoked_at, entry.reason = stamp(now), reason
    # The registry first: it is what the aggregation asks, and it needs no key.
    done = ca.revoke(site, reason=reason, now=now)
    serials = tuple(item.serial for item in done)
    return Revocation(site, str(entry.revoked_at), entry.node_public_key, serials)


def _same_site(request: Path, paths: SitePaths, now: dt.datetime) -> None:
    """Refuse a folder that belongs to another site."""
    if not request.exists():
        return
    try:
        got = str(json.loads(read_limited(request)).get("site"))
    except (ValueError, AttributeError) as error:
        raise refuse("request-garbage", file=request) from error
    if got != paths.site:
        raise refuse("enrol-other-site", folder=paths.folder, got=got, site=paths.site)


def _make_keys(paths: SitePaths) -> None:
    """Make the keys that are missing. Before the first request none of them is known to anybody,
    so a run that was interrupted may simply be completed."""
    if not paths.client.key.exists():
        write_key(paths.client.key, keys.private_pem(keys.new_certificate_key()))
    if not paths.node_key.exists():
        keys.write_node_key(paths.node_key, keys.new_node_key(), comment=paths.site)
    if not paths.signing_key.exists():
        keys.write_signing_key(paths.signing_key, keys.new_signing_key())


def _retire(paths: SitePaths, request: Path, now: dt.datetime) -> None:
    """Put the old identity aside, the request first: without one, the folder counts as new."""
    aside = make_folder(paths.folder / f"retired-{stamp(now).replace(':', '')}")
    client = paths.client
    for path in (
        request,
        client.cert,
        client.pair,
        client.key,
        paths.node_key,
        paths.node_public,
        paths.signing_key,
        paths.signing_public,
    ):
        if path.exists():
            path.rename(aside / path.name)


def _judge_keys(request: Request, source: Path, sites: Mapping[str, SiteEntry]) -> None:
    """Refuse a key that another site uses or used."""
    for which, digest in request.keys.digests().items():
        owner = owner_of(sites, digest, but=request.site)
        if owner:
            raise refuse("key-of-other-site", file=source, which=which, owner=owner)


def _judge_state(request: Request, known: SiteEntry | None, *, renew: bool, readmit: bool) -> None:
    """Refuse what the site's state does not allow: see the table in docs/security.md."""
    site = request.site
    if known is None:
        if renew:
            raise refuse("site-unknown", site=site)
        return
    if not known.revoked:
        if not renew:
            raise refuse("site-enrolled", site=site, when=known.enrolled_at)
        for which, digest in known.digests().items():
            if request.keys.digests()[which] != digest:
                raise refuse("site-other-keys", site=site, which=which)
        return
    if not readmit or renew:
        raise refuse("site-revoked", site=site, when=known.revoked_at)
    burnt = {*known.digests().values(), *known.retired_keys}
    for which, digest in request.keys.digests().items():
        if digest in burnt:
            raise refuse("site-revoked-keys", site=site, when=known.revoked_at, which=which)


def _judge_fingerprint(request: Request, source: Path, given: str, *, needed: bool) -> None:
    if not given and needed:
        raise refuse("fingerprint-none", site=request.site)
    if given and not same_fingerprint(given, request.fingerprint):
        raise refuse("fingerprint", file=source, expected=request.fingerprint, got=given)
