"""A whole federation's keys on one machine, in one call: for the demo, the tests and CI.

    paths = make_federation(Path(".fedward/certs"), ["hospital-a", "hospital-b"])

Real hospitals make their own keys (`certs.enrolment`); here one machine plays all parts, so the
folders keep the parts apart: a site's folder holds no secret but that site's own.

    ca/             the CA                                         coordinator only
    aggregator/     server.crt .key .pem, study-signing.key .pub   the SuperLink's machine
    control-plane/  server.crt .key .pem                           the web page's machine
    coordinator/    client.crt .key .pem                           who submits and enrols
    operator/       client.crt .key .pem                           who only reads
    registry/       sites.json, audit.jsonl                        coordinator only
    sites/<site>/   node.key .pub, signing.key .pub, client.crt .key .pem, study-signing.pub
    (each)          ca.crt: the roots to trust; crl.pem at those who check clients
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from certs import keys
from certs._x509 import utc_now
from certs.ca import CA, CA_LIFETIME, LEAF_LIFETIME
from certs.errors import CertError
from certs.files import locked, make_folder, read_limited, write_atomic
from certs.names import Role, check_server_names, check_site
from certs.registry import Registry, SiteEntry, continued, new_entry
from certs.request import SiteKeys
from certs.sentences import refuse

SERVER_NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class ServerPaths:
    """A server's files. `pair` holds key and chain in one file, for a reload in one step."""

    folder: Path
    cert: Path
    key: Path
    pair: Path
    ca: Path
    crl: Path


@dataclass(frozen=True)
class ClientPaths:
    """The files of a person or machine that connects to the aggregator."""

    folder: Path
    cert: Path
    key: Path
    pair: Path
    ca: Path


@dataclass(frozen=True)
class SitePaths:
    """One hospital's files: its node's identity, its trainer's signing key, its TLS leaf."""

    site: str
    folder: Path
    node_key: Path
    node_public: Path
    signing_key: Path
    signing_public: Path
    client: ClientPaths
    ca: Path
    study_public: Path


@dataclass(frozen=True)
class FederationPaths:
    """Every file of a local federation."""

    folder: Path
    ca_folder: Path
    ca: Path
    crl: Path
    registry: Path  # the folder of sites.json and audit.jsonl
    sites_file: Path
    aggregator: ServerPaths
    control_plane: ServerPaths
    study_signing_key: Path
    study_public: Path
    coordinator: ClientPaths
    operator: ClientPaths
    sites: Mapping[str, SitePaths]


def make_federation(
    folder: Path,
    sites: Sequence[str],
    server_names: Sequence[str] = SERVER_NAMES,
    *,
    lifetime: dt.timedelta = LEAF_LIFETIME,
    ca_lifetime: dt.timedelta = CA_LIFETIME,
    passphrase: str = "",
    now: dt.datetime | None = None,
) -> FederationPaths:
    """Make what is missing, renew what is near its end, keep the rest; then name every file.

    Node keys and signing keys are identities: they are made once and kept, and a damaged one is
    refused rather than replaced. Certificates are renewed when less than a third of their life is
    left, when their names changed, or when anything is wrong with them.

    Args:
        folder: made when missing.
        sites: the hospitals' names; sites from an earlier call that are not listed are left alone.
        server_names: under which the aggregator and the control plane are reached.
        lifetime: of leaves.
        ca_lifetime: of the root.
        passphrase: of the CA's key, when that is encrypted.
        now: the time, for tests.

    Raises:
        CertError: a bad name, a damaged key, or a folder that cannot be written.
    """
    now = now or utc_now()
    check_server_names(server_names)
    for position, site in enumerate(sites):
        if check_site(site) in sites[:position]:
            raise refuse("name-sites-twice", name=site)
    paths = federation_paths(folder, sites)
    make_folder(folder)
    with locked(folder):
        ca = _ca(paths.ca_folder, passphrase, ca_lifetime, lifetime, now)
        _study_key(paths)
        for server in (paths.aggregator, paths.control_plane):
            _server(ca, server, server_names, lifetime, now)
        _client(ca, paths.coordinator, "coordinator", Role.COORDINATOR, lifetime, now)
        _client(ca, paths.operator, "operator", Role.OPERATOR, lifetime, now)
        with Registry(paths.registry).changing() as entries:
            for own in paths.sites.values():
                _site(ca, own, entries, lifetime, now)
        _publish(ca, paths, now)
    return paths


def federation_paths(folder: Path, sites: Sequence[str]) -> FederationPaths:
    """The names of a federation's files, made or not.

    Raises:
        CertError: `name-site`.
    """
    aggregator = folder / "aggregator"
    return FederationPaths(
        folder=folder,
        ca_folder=folder / "ca",
        ca=folder / "ca" / "trust.pem",
        crl=folder / "ca" / "crl.pem",
        registry=folder / "registry",
        sites_file=Registry(folder / "registry").path,
        aggregator=server_paths(aggregator),
        control_plane=server_paths(folder / "control-plane"),
        study_signing_key=aggregator / "study-signing.key",
        study_public=aggregator / "study-signing.pub",
        coordinator=client_paths(folder / "coordinator"),
        operator=client_paths(folder / "operator"),
        sites={site: site_paths(folder / "sites" / check_site(site), site) for site in sites},
    )


def site_paths(folder: Path, site: str) -> SitePaths:
    """The names of a hospital's files in `folder`, the same for the demo and a real enrolment."""
    return SitePaths(
        site=check_site(site),
        folder=folder,
        node_key=folder / "node.key",
        node_public=folder / "node.pub",
        signing_key=folder / "signing.key",
        signing_public=folder / "signing.pub",
        client=client_paths(folder),
        ca=folder / "ca.crt",
        study_public=folder / "study-signing.pub",
    )


def client_paths(folder: Path) -> ClientPaths:
    """The names of a client's files in `folder`."""
    return ClientPaths(
        folder=folder,
        cert=folder / "client.crt",
        key=folder / "client.key",
        pair=folder / "client.pem",
        ca=folder / "ca.crt",
    )


def server_paths(folder: Path) -> ServerPaths:
    """The names of a server's files in `folder`."""
    return ServerPaths(
        folder=folder,
        cert=folder / "server.crt",
        key=folder / "server.key",
        pair=folder / "server.pem",
        ca=folder / "ca.crt",
        crl=folder / "crl.pem",
    )


def _ca(
    folder: Path,
    passphrase: str,
    ca_lifetime: dt.timedelta,
    lifetime: dt.timedelta,
    now: dt.datetime,
) -> CA:
    """The CA in `folder`, or a new root beside the old one when that is near its end."""
    if not (folder / "state.json").exists():
        return CA.create(lifetime=ca_lifetime, now=now).save(folder, passphrase=passphrase)
    ca = CA.load(folder, passphrase=passphrase)
    old = ca.previous_root
    if old and old.not_valid_after_utc <= now:
        ca.finish_rollover(force=True, now=now)
    root = ca.root
    third = (root.not_valid_after_utc - root.not_valid_before_utc) / 3
    if root.not_valid_after_utc - now < min(third, 2 * lifetime):
        if ca.rolling:
            ca.finish_rollover(force=True, now=now)
        ca.begin_rollover(lifetime=ca_lifetime, now=now)
    return ca


def _study_key(paths: FederationPaths) -> None:
    make_folder(paths.aggregator.folder)
    if paths.study_signing_key.exists():
        key = keys.load_signing_key(paths.study_signing_key)
        write_atomic(paths.study_public, keys.public_pem(key.public_key()))
    else:
        keys.write_signing_key(paths.study_signing_key, keys.new_signing_key())


def _server(
    ca: CA, paths: ServerPaths, names: Sequence[str], lifetime: dt.timedelta, now: dt.datetime
) -> None:
    make_folder(paths.folder)
    if not _still_good(ca, paths.cert, paths.key, paths.pair, set(names), now):
        ca.issue_server(names, lifetime, now=now).write(paths.folder, "server")


def _client(
    ca: CA, paths: ClientPaths, name: str, role: Role, lifetime: dt.timedelta, now: dt.datetime
) -> None:
    make_folder(paths.folder)
    if not _still_good(
        ca, paths.cert, paths.key, paths.pair, {f"fedward://{role.value}/{name}"}, now
    ):
        ca.issue_client(name, role, lifetime, now=now).write(paths.folder, "client")


def _site(
    ca: CA,
    paths: SitePaths,
    entries: dict[str, SiteEntry],
    lifetime: dt.timedelta,
    now: dt.datetime,
) -> None:
    """One hospital's keys and leaf; a site that was revoked stays so, and gets nothing."""
    entry = entries.get(paths.site)
    if entry and entry.revoked:
        return
    make_folder(paths.folder)
    node, signing = _site_keys(paths, known=entry is not None)
    client, uri = paths.client, f"fedward://hospital/{paths.site}"
    if entry and _still_good(ca, client.cert, client.key, client.pair, {uri}, now):
        return
    leaf = ca.issue_client(paths.site, Role.HOSPITAL, lifetime, key=_own(client.key), now=now)
    leaf.write(paths.folder, "client")
    public = leaf.certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):  # our own leaves are all EC
        raise refuse("key-kind", file=client.cert, what=keys.describe(public))
    fresh = new_entry(paths.site, SiteKeys(public, node, signing), leaf, now)
    entries[paths.site] = continued(entry, fresh, renewed=True) if entry else fresh


def _site_keys(
    paths: SitePaths, *, known: bool
) -> tuple[ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey]:
    """The site's two identities, made when the site is new; their public files written anew."""
    for path in (paths.node_key, paths.signing_key):
        if known and not path.exists():
            raise refuse("enrol-half", folder=paths.folder, missing=path.name)
    if not paths.node_key.exists():
        keys.write_node_key(paths.node_key, keys.new_node_key(), comment=paths.site)
    if not paths.signing_key.exists():
        keys.write_signing_key(paths.signing_key, keys.new_signing_key())
    node = keys.load_node_key(paths.node_key).public_key()
    signing = keys.load_signing_key(paths.signing_key).public_key()
    write_atomic(paths.node_public, keys.node_public_line(node, paths.site))
    write_atomic(paths.signing_public, keys.public_pem(signing))
    return node, signing


def _own(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """The site's TLS key if it can be used again; a damaged one is no identity, and is replaced."""
    try:
        key = keys.load_certificate_key(path)
    except CertError:
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _publish(ca: CA, paths: FederationPaths, now: dt.datetime) -> None:
    """Give everybody the roots, those who check clients the list, the sites the study's key."""
    ca.write_public_files(now=now)
    crl = read_limited(paths.crl, limit=16 * 1024 * 1024)
    for server in (paths.aggregator, paths.control_plane):
        write_atomic(server.ca, ca.trust_pem)
        write_atomic(server.crl, crl)
    study = read_limited(paths.study_public)
    for client in (paths.coordinator, paths.operator):
        write_atomic(client.ca, ca.trust_pem)
    for site in (site for site in paths.sites.values() if site.folder.exists()):
        write_atomic(site.ca, ca.trust_pem)
        write_atomic(site.study_public, study)


def _still_good(
    ca: CA, cert: Path, key: Path, pair: Path, names: set[str], now: dt.datetime
) -> bool:
    """Whether a leaf is ours, matches its key and names, and has a third of its life left."""
    try:
        private = keys.load_certificate_key(key)
        text = read_limited(cert)
        if read_limited(pair) != keys.private_pem(private) + text:
            return False
        leaf = x509.load_pem_x509_certificate(text)
        leaf.verify_directly_issued_by(ca.issuing)
        alternative = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (CertError, ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        return False
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    serial = f"{leaf.serial_number:x}"
    return (
        {str(name.value) for name in alternative} == names
        and keys.public_digest(leaf.public_key()) == keys.public_digest(private.public_key())
        and begin <= now
        and end - now >= (end - begin) / 3
        and serial not in {entry.serial for entry in ca.revoked}
    )
