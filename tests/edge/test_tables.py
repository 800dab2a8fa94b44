"""What is made from other files is made right: routes, revoked serials, owners of node keys."""

import datetime as dt
import re
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from edge_lab import DOCKER_EDGE, node_header, registry_of

from certs import CA, keys
from certs.local import FederationPaths
from protocol.control import MAX_PROGRESS_BYTES
from protocol.flower import MAX_FLEET_BODY_BYTES

sys.path.insert(0, str(DOCKER_EDGE))

from fedward_edge.tables import TableError, key_owners, revoked_serials
from routes import tables


@pytest.mark.parametrize("name", sorted(tables()))
def test_the_committed_route_tables_are_those_of_the_protocol(name: str) -> None:
    assert (DOCKER_EDGE / name).read_text() == tables()[name]


def test_the_limits_in_the_configuration_are_those_of_the_protocol() -> None:
    limits = re.findall(r"hdr_val\(content-length\) gt (\d+)", _config())
    assert sorted(map(int, limits)) == [MAX_PROGRESS_BYTES, MAX_FLEET_BODY_BYTES]


def test_the_configuration_never_answers_403() -> None:
    """Flower takes 403 to mean that the run is over."""
    rules = [line for line in _config().splitlines() if not line.strip().startswith("#")]
    assert not [line for line in rules if "403" in line or "http-request deny" in line]


def test_an_empty_revocation_list_revokes_nobody() -> None:
    assert revoked_serials(CA.create().crl_pem()) == []


def test_serials_are_read_as_haproxy_writes_them() -> None:
    ca = CA.create(intermediate=True)
    leaves = [ca.issue_client(f"hospital-{number}") for number in range(40)]
    for leaf in leaves:
        ca.revoke(leaf.certificate.serial_number)
    numbers = [leaf.certificate.serial_number for leaf in leaves]
    expected = sorted(_even(f"{number:X}") for number in numbers)
    assert revoked_serials(ca.crl_pem()) == expected


def test_the_serials_of_two_roots_are_both_read() -> None:
    ca = CA.create()
    old = ca.issue_client("hospital-a")
    ca.revoke("hospital-a")
    ca.begin_rollover()
    new = ca.issue_client("hospital-b")
    ca.revoke("hospital-b")
    numbers = {int(serial, 16) for serial in revoked_serials(ca.crl_pem())}
    assert numbers == {old.certificate.serial_number, new.certificate.serial_number}


def test_a_damaged_list_is_refused() -> None:
    good = CA.create().crl_pem()
    lines = good.splitlines()
    for bad in (b"", b"hello", b"\n".join([lines[0], *lines[2:]]), good.replace(lines[1], b"AAAA")):
        with pytest.raises(TableError):
            revoked_serials(bad)


def test_a_node_key_is_found_under_the_digest_of_flowers_own_header(
    paths: FederationPaths,
) -> None:
    import hashlib

    owners = key_owners(registry_of(paths).encode())
    for name, site in paths.sites.items():
        header = node_header(site)["flwr-public-key"]
        assert owners[hashlib.sha256(header.encode()).hexdigest().upper()] == name


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_every_curve_that_flower_takes_is_encoded_as_flower_does(
    curve: type[ec.EllipticCurve],
) -> None:
    import hashlib
    import json
    from base64 import b64encode

    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    key = ec.generate_private_key(curve()).public_key()
    line = keys.node_public_line(key, "x").decode()
    owners = key_owners(json.dumps({"sites": {"x": {"node_public_key": line}}}).encode())
    header = b64encode(public_key_to_bytes(key))
    assert owners == {hashlib.sha256(header).hexdigest().upper(): "x"}


def test_a_revoked_hospitals_key_is_nobodys(paths: FederationPaths) -> None:
    text = registry_of(paths).replace(
        '"revoked_at": null', '"revoked_at": "2026-03-01T12:00:00Z"', 1
    )
    assert set(key_owners(text.encode()).values()) == {"hospital-b"}


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"[]",
        b'{"sites": []}',
        b'{"sites": {"a": {}}}',
        b'{"sites": {"a": {"node_public_key": "ecdsa AAAA"}}}',
        b'{"sites": {"a b": {"node_public_key": "%s"}}}',
    ],
)
def test_a_damaged_registry_is_refused(bad: bytes) -> None:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    with pytest.raises(TableError):
        key_owners(bad.replace(b"%s", keys.node_public_line(key).strip()))


def _config() -> str:
    return (DOCKER_EDGE / "haproxy.cfg").read_text()


def _even(digits: str) -> str:
    return digits if len(digits) % 2 == 0 else f"0{digits}"


def test_a_list_made_elsewhere_is_read_too() -> None:
    """With entry extensions and without nextUpdate-free shortcuts: as RFC 5280 allows."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    entry = (
        x509.RevokedCertificateBuilder()
        .serial_number(0x80FF)
        .revocation_date(now)
        .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        .build()
    )
    from cryptography.hazmat.primitives import hashes, serialization

    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([]))
        .last_update(now)
        .next_update(now + dt.timedelta(days=1))
        .add_revoked_certificate(entry)
        .sign(key, hashes.SHA256())
    )
    assert revoked_serials(crl.public_bytes(serialization.Encoding.PEM)) == ["80FF"]
