"""At the hospital: check a bundle against the site's own keys and past, and only then write it."""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from certs import _pem, keys
from certs._chain import Judged, issued, judge_chain, judge_roots
from certs._x509 import CLIENT, stamp, utc_now
from certs.bundle import Bundle, parse_bundle
from certs.files import locked, read_limited, write_atomic, write_key
from certs.fingerprints import certificate_fingerprint, same_fingerprint
from certs.inspection import certificate_names
from certs.local import SitePaths, site_paths
from certs.names import Role, identity_uri
from certs.sentences import refuse

# What the link reads: where to connect, and since when. It holds no secret.
ENROLMENT_FILE = "enrolment.json"


@dataclass(frozen=True)
class Installed:
    """A bundle that was accepted. `ca_fingerprint` is compared with the coordinator's words."""

    site: str
    ca_fingerprint: str
    not_after: dt.datetime
    aggregator: str
    control_plane: str
    crl_url: str
    paths: SitePaths
    renewed: bool  # an earlier bundle of the same CA was installed here


def install(
    bundle_path: Path,
    folder: Path,
    *,
    ca_fingerprint: str = "",
    new_study_key: bool = False,
    now: dt.datetime | None = None,
) -> Installed:
    """Check the bundle in `bundle_path`, and write what is in it to the site's folder.

    Args:
        bundle_path: the file that came from the coordinator.
        folder: where `make_request` made the site's keys.
        ca_fingerprint: as the coordinator read it aloud; needed only when the bundle comes from
            a CA that nothing here vouches for, welcome always.
        new_study_key: accept another study signing key than the one installed.
        now: the time, for tests.

    Raises:
        CertError: `bundle-*`, `enrol-none`, `cert-*`, `file-*`; nothing is changed.
    """
    now = now or utc_now()
    data = read_limited(bundle_path)
    bundle = parse_bundle(data, bundle_path)
    if not (folder / "request.json").exists():
        raise refuse("enrol-none", folder=folder)
    with locked(folder):
        paths = site_paths(folder, _own_site(folder))
        if bundle.site != paths.site:
            raise refuse("bundle-site", file=bundle_path, got=bundle.site, site=paths.site)
        _judge_certificate(bundle, bundle_path, now)
        _judge_own_keys(bundle, bundle_path, paths)
        renewed = _judge_past(bundle, bundle_path, paths, ca_fingerprint, new_study_key)
        _write(bundle, paths)
    return Installed(
        site=bundle.site,
        ca_fingerprint=certificate_fingerprint(bundle.trust[0]),
        not_after=bundle.chain[0].not_valid_after_utc,
        aggregator=bundle.study.aggregator,
        control_plane=bundle.study.control_plane,
        crl_url=bundle.study.crl_url,
        paths=paths,
        renewed=renewed,
    )


def vouched(
    trust: Sequence[x509.Certificate],
    links: Sequence[x509.Certificate],
    installed: Sequence[x509.Certificate],
) -> bool:
    """Whether every root in `trust` is installed already, or signed by one that is.

    A link is a certificate for the new root's key and name, made by the old root.
    """
    return all(
        root in installed
        or any(
            link.subject == root.subject
            and keys.spki(link.public_key()) == keys.spki(root.public_key())
            and any(issued(link, old) for old in installed)
            for link in links
        )
        for root in trust
    )


def _own_site(folder: Path) -> str:
    """The site to which the folder belongs: the one in its request."""
    try:
        return str(json.loads(read_limited(folder / "request.json"))["site"])
    except (ValueError, KeyError, TypeError) as error:
        raise refuse("request-garbage", file=folder / "request.json") from error


def _judge_certificate(bundle: Bundle, file: Path, now: dt.datetime) -> None:
    judged = Judged(file, file, now)
    judge_roots(bundle.trust, judged)
    judge_chain(bundle.chain, bundle.trust, CLIENT, judged)
    expected = identity_uri(Role.HOSPITAL, bundle.site)
    names = certificate_names(bundle.chain[0])
    if names != (expected,):
        raise refuse(
            "cert-identity", file=file, got=", ".join(names) or "nobody", expected=expected
        )


def _judge_own_keys(bundle: Bundle, file: Path, paths: SitePaths) -> None:
    """Each of the three keys in the bundle must be the public half of one that lies here."""
    own = {
        "client key": keys.load_certificate_key(paths.client.key).public_key(),
        "node key": keys.load_node_key(paths.node_key).public_key(),
        "signing key": keys.load_signing_key(paths.signing_key).public_key(),
    }
    given = {
        "client key": bundle.chain[0].public_key(),
        "node key": bundle.node_key,
        "signing key": bundle.signing_key,
    }
    for which, key in own.items():
        if keys.spki(key) != keys.spki(given[which]):
            raise refuse("bundle-key", file=file, which=which, folder=paths.folder)


def _judge_past(
    bundle: Bundle, file: Path, paths: SitePaths, fingerprint: str, new_study_key: bool
) -> bool:
    """Compare with what a person said and with what is installed; whether something was."""
    own = certificate_fingerprint(bundle.trust[0])
    compared = bool(fingerprint)
    if compared and not same_fingerprint(fingerprint, own):
        raise refuse("bundle-ca-fingerprint", file=file, expected=own, got=fingerprint)
    if not paths.ca.exists():
        return False
    installed = _pem.read_certificates(paths.ca)
    if not compared and not vouched(bundle.trust, bundle.links, installed):
        expected = certificate_fingerprint(installed[0])
        raise refuse("bundle-other-ca", file=file, got=own, expected=expected)
    if paths.study_public.exists() and not new_study_key:
        study = keys.load_signing_public(paths.study_public)
        if keys.spki(study) != keys.spki(bundle.study.study_key):
            raise refuse("bundle-study-key", file=file)
    made = _installed_at(paths.folder)
    if made and stamp(bundle.made) < made:
        raise refuse("bundle-older", file=file, got=stamp(bundle.made), installed=made)
    return True


def _installed_at(folder: Path) -> str:
    """When the installed bundle was made; empty when that is not known."""
    path = folder / ENROLMENT_FILE
    if not path.exists():
        return ""
    try:
        return str(json.loads(read_limited(path))["made"])
    except (ValueError, KeyError, TypeError) as error:
        raise refuse(
            "state-garbage", file=path, why="it is not the JSON that was written"
        ) from error


def _write(bundle: Bundle, paths: SitePaths) -> None:
    """Trust first, then the certificate: after a crash between two files, what is there works."""
    write_atomic(paths.ca, bundle.trust_pem)
    write_atomic(paths.study_public, keys.public_pem(bundle.study.study_key))
    private = read_limited(paths.client.key)
    write_key(paths.client.pair, private + bundle.certificate_pem)
    write_atomic(paths.client.cert, bundle.certificate_pem)
    enrolment = {
        "site": bundle.site,
        "made": stamp(bundle.made),
        "aggregator": bundle.study.aggregator,
        "control_plane": bundle.study.control_plane,
        "crl_url": bundle.study.crl_url,
        "ca_fingerprint": certificate_fingerprint(bundle.trust[0]),
        "not_after": stamp(bundle.chain[0].not_valid_after_utc),
    }
    write_atomic(paths.folder / ENROLMENT_FILE, json.dumps(enrolment, indent=1).encode() + b"\n")
