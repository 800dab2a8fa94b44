"""A CA in a few nouns and verbs, judged by OpenSSL."""

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs import CA, CertError, Role, _x509, keys
from tests.certs.judges import (
    CLIENT,
    DAY,
    NOW,
    SERVER,
    assert_is_ca,
    assert_is_leaf,
    openssl_verifies,
)

NAMES = ["fl.example.org", "10.0.0.7", "::1"]


@pytest.mark.parametrize("curve", ["P-256", "P-384"])
@pytest.mark.parametrize("intermediate", [False, True])
def test_openssl_accepts_each_leaf_for_its_purpose_only(
    tmp_path: Path, curve: str, intermediate: bool
) -> None:
    """A server's leaf verifies as a server's and a hospital's as a client's, never the reverse."""
    ca = CA.create(curve=curve, intermediate=intermediate).save(tmp_path / "ca")
    ca.issue_server(NAMES).write(tmp_path, "server")
    ca.issue_client("hospital-a").write(tmp_path, "client")
    ca.write_public_files()
    trust = tmp_path / "ca" / "trust.pem"
    lists = ("-crl_check_all", "-CRLfile", tmp_path / "ca" / "crl.pem")
    server, client = tmp_path / "server.crt", tmp_path / "client.crt"
    assert openssl_verifies(server, trust, "sslserver", *lists)
    assert openssl_verifies(server, trust, "sslserver", "-verify_hostname", "fl.example.org")
    assert openssl_verifies(server, trust, "sslserver", "-verify_ip", "10.0.0.7")
    assert not openssl_verifies(server, trust, "sslserver", "-verify_hostname", "other.org")
    assert openssl_verifies(client, trust, "sslclient", *lists)
    assert not openssl_verifies(client, trust, "sslserver")
    assert not openssl_verifies(server, trust, "sslclient")


def test_extensions_are_what_the_profiles_say() -> None:
    """Root, intermediate and leaves carry the extensions of their kind, and no more."""
    ca = CA.create(intermediate=True)
    assert_is_ca(ca.root, 2)
    assert_is_ca(ca.issuing, 0)
    assert_is_leaf(ca.issue_server(NAMES).certificate, SERVER, NAMES)
    for role in Role:
        leaf = ca.issue_client("hospital-a", role)
        assert_is_leaf(leaf.certificate, CLIENT, [f"fedward://{role}/hospital-a"])


def test_a_leaf_is_short_lived_backdated_and_never_outlives_its_ca() -> None:
    """A leaf lives thirty days unless told otherwise, and ends with its CA at the latest."""
    ca = CA.create(lifetime=40 * DAY, now=NOW)
    leaf = ca.issue_server(NAMES, now=NOW)
    assert leaf.not_after == NOW + 30 * DAY
    assert leaf.certificate.not_valid_before_utc == NOW - dt.timedelta(minutes=5)
    assert ca.issue_server(NAMES, dt.timedelta(seconds=30), now=NOW).not_after == NOW + (DAY / 2880)
    assert ca.issue_server(NAMES, 90 * DAY, now=NOW).not_after == NOW + 40 * DAY


def test_serials_are_random() -> None:
    """No two certificates share a serial, and none is small."""
    ca = CA.create()
    serials = {ca.issue_client("hospital-a").certificate.serial_number for _ in range(20)}
    assert len(serials) == 20
    assert min(serials) > 2**64


def test_keys_are_private_and_folders_closed(tmp_path: Path) -> None:
    """Every file that holds a private key is 0600, and the CA's folder is the owner's alone."""
    ca = CA.create(intermediate=True).save(tmp_path / "ca")
    ca.issue_server(NAMES).write(tmp_path, "server")
    secret = [path for path in tmp_path.rglob("*") if path.is_file()]
    secret = [path for path in secret if b"PRIVATE KEY" in path.read_bytes()]
    assert len(secret) == 4
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o700


def test_a_passphrase_locks_the_key(tmp_path: Path) -> None:
    """An encrypted CA can be looked at without the passphrase, and signs only with it."""
    CA.create().save(tmp_path, passphrase="correct horse")
    assert CA.load(tmp_path).fingerprint
    for passphrase, code in (("", "key-locked"), ("wrong", "key-passphrase")):
        with pytest.raises(CertError) as caught:
            CA.load(tmp_path, passphrase=passphrase).issue_client("hospital-a")
        assert caught.value.code == code
    CA.load(tmp_path, passphrase="correct horse").issue_client("hospital-a")


def test_the_root_may_be_offline_when_an_intermediate_signs(tmp_path: Path) -> None:
    """Without the root's key, the intermediate issues and revokes; the root itself cannot sign."""
    ca = CA.create(intermediate=True).save(tmp_path)
    root = next(tmp_path.glob(f"ca-{keys.public_digest(ca.root.public_key())[:8]}.key"))
    root.rename(tmp_path.parent / "on a shelf")
    again = CA.load(tmp_path)
    leaf = again.issue_client("hospital-a")
    assert again.revoke(leaf.certificate.serial_number)
    with pytest.raises(CertError, match="not on this machine"):
        again.begin_rollover()


def test_two_commands_at_once_lose_nothing(tmp_path: Path) -> None:
    """Certificates issued by several processes at the same moment are all in the record."""
    CA.create().save(tmp_path)

    def issue(number: int) -> str:
        return CA.load(tmp_path).issue_client(f"hospital-{number}").serial

    with ThreadPoolExecutor(8) as pool:
        serials = set(pool.map(issue, range(16)))
    assert {entry.serial for entry in CA.load(tmp_path).issued()} == serials


def test_a_csr_gives_its_key_and_nothing_else() -> None:
    """The names in a certificate are the coordinator's, whatever the CSR says."""
    key = keys.new_certificate_key()
    csr = _x509.request(_x509.subject("root", "server"), key, [x509.DNSName("fl.example.org")])
    leaf = CA.create().sign_request(csr, "hospital-a")
    assert_is_leaf(leaf.certificate, CLIENT, ["fedward://hospital/hospital-a"])
    assert leaf.certificate.public_key() == key.public_key()
    assert leaf.key is None


def test_revocation_survives_a_restart_and_repeats_harmlessly(tmp_path: Path) -> None:
    """A revoked serial is on the list after loading again; the first moment is kept."""
    ca = CA.create().save(tmp_path)
    serials = {ca.issue_client("hospital-a").certificate.serial_number for _ in range(2)}
    kept = ca.issue_client("hospital-b").certificate.serial_number
    first = ca.revoke("hospital-a", now=NOW)
    again = CA.load(tmp_path)
    assert again.revoke("hospital-a", now=NOW + DAY) == first
    crl = x509.load_pem_x509_crl((tmp_path / "crl.pem").read_bytes())
    assert {entry.serial_number for entry in crl} == serials
    assert kept not in serials


def test_the_list_forgets_what_has_ended(tmp_path: Path) -> None:
    """Entries leave the list a day after their certificate ended, so it does not grow for ever."""
    ca = CA.create(now=NOW)
    ca.issue_client("hospital-a", lifetime=DAY, now=NOW)
    ca.revoke("hospital-a", now=NOW)
    lists = [ca.crl_pem(now=NOW + days * DAY) for days in (0, 1, 3)]
    parsed = [x509.load_pem_x509_crl(text) for text in lists]
    assert [len(list(crl)) for crl in parsed] == [1, 1, 0]
    numbers = [c.extensions.get_extension_for_class(x509.CRLNumber).value for c in parsed]
    assert [number.crl_number for number in numbers] == [1, 2, 3]


def test_a_leaf_points_to_the_list_when_there_is_a_place_for_it() -> None:
    """With a CRL address, every leaf carries it."""
    leaf = CA.create(crl_url="http://fl.example.org/crl.pem").issue_client("hospital-a")
    points = leaf.certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert points[0].full_name is not None
    assert points[0].full_name[0].value == "http://fl.example.org/crl.pem"


def test_keys_of_a_leaf_are_nist_curves() -> None:
    """A leaf's key is EC P-256 unless the caller brings another."""
    key = CA.create().issue_client("hospital-a").key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
