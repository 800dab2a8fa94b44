"""`make_federation` makes a whole federation's keys in one call, and the second call keeps them."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from certs import CA, CertError, enrolment, keys
from certs.inspection import (
    check_client_files,
    check_node_key,
    check_server_files,
    check_signing_key,
)
from certs.local import FederationPaths, make_federation
from certs.names import Role
from certs.registry import Registry
from tests.certs.judges import DAY, NOW, openssl_verifies

SITES = ["hospital-a", "hospital-b", "hospital-c"]


@pytest.fixture
def paths(tmp_path: Path) -> FederationPaths:
    return make_federation(tmp_path / "f", SITES, now=NOW)


def contents(folder: Path) -> dict[Path, bytes]:
    """The files that must not change without need: all but the list and the CA's record of it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p: p.read_bytes() for p in files if p.name not in {"crl.pem", "state.json"}}


def test_every_file_passes_its_check(paths: FederationPaths) -> None:
    """Servers, people, nodes and trainers can start with what is made."""
    for server in (paths.aggregator, paths.control_plane):
        for name in ("localhost", "127.0.0.1"):
            check_server_files(server.cert, server.key, server.ca, name=name, crl=server.crl)
            check_server_files(server.pair, server.pair, server.ca, name=name)
        assert openssl_verifies(server.cert, paths.ca, "sslserver")
    for person, role in ((paths.coordinator, Role.COORDINATOR), (paths.operator, Role.OPERATOR)):
        check_client_files(person.cert, person.key, person.ca, site=role.value, role=role)
    for name, site in paths.sites.items():
        check_client_files(site.client.cert, site.client.key, site.ca, site=name, crl=paths.crl)
        check_node_key(site.node_key, site.node_public)
        check_signing_key(site.signing_key, site.signing_public)
        assert site.study_public.read_bytes() == paths.study_public.read_bytes()
    check_signing_key(paths.study_signing_key, paths.study_public)


def test_flower_would_read_the_node_key(paths: FederationPaths) -> None:
    """The node key is an unencrypted OpenSSH private key on P-384, read the way Flower reads it."""
    key = load_ssh_private_key(paths.sites["hospital-a"].node_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP384R1)


def test_no_folder_holds_anothers_secret(paths: FederationPaths) -> None:
    """Each private key lies in one folder only: a site that is taken loses its own keys alone."""
    owners: dict[bytes, set[Path]] = {}
    for path in paths.folder.rglob("*"):
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
            assert path.stat().st_mode & 0o777 == 0o600, path
            secret = path.read_bytes().split(b"PRIVATE KEY-----")[1]
            owners.setdefault(secret, set()).add(path.parent)
    assert all(len(folders) == 1 for folders in owners.values())
    # CA, study, two servers, two people, and three for each site.
    assert len(owners) == 6 + 3 * len(SITES)


def test_the_second_call_changes_nothing(paths: FederationPaths) -> None:
    """Making a federation again keeps every key and every certificate that is still good."""
    before = contents(paths.folder)
    assert make_federation(paths.folder, SITES, now=NOW + DAY) == paths
    assert contents(paths.folder) == before


def test_what_is_near_its_end_is_renewed_and_identities_stay(paths: FederationPaths) -> None:
    """With a third of their life left, leaves are renewed; node and signing keys are kept."""
    before = contents(paths.folder)
    later = NOW + 25 * DAY
    make_federation(paths.folder, SITES, now=later)
    changed = {path.name for path, data in contents(paths.folder).items() if before[path] != data}
    assert changed == {
        "server.crt", "server.key", "server.pem", "client.crt", "client.key", "client.pem",
        "sites.json",
    }  # fmt: skip
    site = paths.sites["hospital-a"]
    check_client_files(site.client.cert, site.client.key, site.ca, now=later)
    registered = Registry(paths.registry).site("hospital-a")
    assert len(registered.serials) == 2
    assert registered.node_public_key == site.node_public.read_text().strip()


def test_an_ended_ca_is_replaced(paths: FederationPaths) -> None:
    """Years later the same call makes a federation that works again, with the same identities."""
    node = paths.sites["hospital-a"].node_key.read_bytes()
    later = NOW + 800 * DAY
    make_federation(paths.folder, SITES, now=later)
    server, site = paths.aggregator, paths.sites["hospital-a"]
    check_server_files(server.cert, server.key, server.ca, now=later)
    check_client_files(site.client.cert, site.client.key, site.ca, now=later, crl=paths.crl)
    assert site.node_key.read_bytes() == node


def test_new_names_and_new_sites_are_added(paths: FederationPaths) -> None:
    """Another server name renews the servers' leaves only; another site leaves the rest alone."""
    before = contents(paths.folder)
    more = make_federation(paths.folder, [*SITES, "hospital-d"], ("fl.example.org",), now=NOW)
    after = contents(paths.folder)
    check_server_files(more.aggregator.cert, more.aggregator.key, more.ca, name="fl.example.org")
    changed = {path.name for path, data in before.items() if after[path] != data}
    assert changed == {"server.crt", "server.key", "server.pem", "sites.json"}


@pytest.mark.parametrize("name", ["client.crt", "client.key", "client.pem"])
def test_a_damaged_certificate_is_replaced(paths: FederationPaths, name: str) -> None:
    """Half a certificate or TLS key on disk is no identity: it is made anew."""
    site = paths.sites["hospital-a"]
    path = site.folder / name
    path.write_bytes(path.read_bytes()[:100])
    make_federation(paths.folder, SITES, now=NOW)
    check_client_files(site.client.cert, site.client.key, site.ca, site="hospital-a")


@pytest.mark.parametrize("name", ["node.key", "signing.key"])
def test_a_damaged_identity_is_refused(paths: FederationPaths, name: str) -> None:
    """Half a node key is never replaced in silence, nor is one that has disappeared."""
    path = paths.sites["hospital-a"].folder / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CertError, match="cut short"):
        make_federation(paths.folder, SITES, now=NOW)
    path.unlink()
    with pytest.raises(CertError, match="holds some of a site's keys but not"):
        make_federation(paths.folder, SITES, now=NOW)


def test_a_revoked_site_stays_revoked(paths: FederationPaths) -> None:
    """Starting the demo again does not let a revoked hospital back in."""
    ca, registry = CA.load(paths.ca_folder), Registry(paths.registry)
    enrolment.revoke(ca, "hospital-b", registry, now=NOW)
    make_federation(paths.folder, SITES, now=NOW + 25 * DAY)
    site = paths.sites["hospital-b"]
    with pytest.raises(CertError, match="was revoked at"):
        check_client_files(
            site.client.cert, site.client.key, site.ca, crl=paths.crl, now=NOW + 25 * DAY
        )
    assert registry.signing_keys().keys() == {"hospital-a", "hospital-c"}


def test_the_registry_serves_the_server(paths: FederationPaths) -> None:
    """The demo's registry has the form of a real one, so the server reads one kind of file."""
    served = Registry(paths.registry).signing_keys()
    for name, site in paths.sites.items():
        public = keys.load_signing_public(site.signing_public)
        assert keys.spki(served[name]) == keys.spki(public)


def test_minutes_are_long_enough(tmp_path: Path) -> None:
    """Leaves may live for minutes, as the rotation test wants them."""
    paths = make_federation(tmp_path, ["a"], lifetime=dt.timedelta(minutes=2), now=NOW)
    server = paths.aggregator
    report = check_server_files(server.cert, server.key, server.ca, now=NOW)
    assert report.seconds_left(NOW) == 120
    assert report.warning(NOW) == 1
