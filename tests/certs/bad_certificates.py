"""Certificates, chains, roots and revocation lists that are refused."""

import os
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certs import _x509, keys
from certs.inspection import (
    check_ca_file,
    check_client_files,
    check_server_files,
)
from tests.certs.judges import DAY, NOW, craft, craft_root, openssl, write_roots
from tests.certs.workbench import Act, Bench, bad, below, client, crl, openssl_leaf


@bad("cert-der")
def der_certificate(b: Bench) -> Act:
    der = craft(b.root).certificate.public_bytes(serialization.Encoding.DER)
    return b.check(b.write(der), b.good()[1])


@bad("cert-truncated")
def truncated_certificate(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(b.write(cert.read_bytes()[:300]), key)


@bad("cert-garbage")
def garbage_certificate(b: Bench) -> Act:
    return b.check(b.write(os.urandom(2000) + b"!"), b.good()[1])


@bad("cert-garbage")
def certificate_with_flipped_bytes(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(b.write(cert.read_bytes().replace(b"\nMI", b"\nXX", 1)), key)


@bad("cert-is-key")
def key_for_certificate(b: Bench) -> Act:
    _, key = b.good()
    return b.check(b.write(key.read_bytes()), key)


@bad("cert-is-key")
def key_in_the_roots(b: Bench) -> Act:
    b.roots.write_bytes(b.roots.read_bytes() + keys.private_pem(b.root.key))
    return b.check(*b.good())


@bad("cert-is-request")
def request_for_certificate(b: Bench) -> Act:
    csr = _x509.request(_x509.subject("a", "b"), keys.new_certificate_key(), [])
    return b.check(b.write(_x509.pem(csr)), b.good()[1])


@bad("cert-sha1")
def sha1_certificate(b: Bench) -> Act:
    return openssl_leaf(b, "-sha1")


@bad("cert-version")
def version_1_certificate(b: Bench) -> Act:
    return openssl_leaf(b, "-sha256", extensions=False)


@bad("cert-self-signed")
def self_signed_leaf(b: Bench) -> Act:
    return b.server(craft(None))


@bad("cert-self-signed")
def self_signed_by_openssl(b: Bench) -> Act:
    cert, key = b.folder / "self.crt", b.folder / "self.key"
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-subj", "/CN=localhost", "-keyout", key, "-out", cert)  # fmt: skip
    return lambda: check_server_files(cert, key, b.roots)


@bad("cert-no-names")
def certificate_without_names(b: Bench) -> Act:
    return b.server(craft(b.root, names=None))


@bad("cert-extensions")
def certificate_with_a_broken_extension(b: Bench) -> Act:
    oid = x509.SubjectAlternativeName.oid
    broken = x509.UnrecognizedExtension(oid, b"\x30\x05\x00")
    return b.server(craft(b.root, names=None, extra=broken))


@bad("cert-is-ca")
def root_for_leaf(b: Bench) -> Act:
    return b.server(b.root)


@bad("cert-names")
def two_stars(b: Bench) -> Act:
    return b.server(craft(b.root, names=(x509.DNSName("*.localhost"),)))


@bad("cert-names")
def names_with_control_characters(b: Bench) -> Act:
    return b.server(craft(b.root, names=(x509.DNSName("a\x1b[31mb\nlocalhost"),)))


@bad("cert-identity")
def another_sites_certificate(b: Bench) -> Act:
    return client(b, "fedward://hospital/hospital-b")


@bad("cert-identity")
def an_operators_certificate(b: Bench) -> Act:
    return client(b, "fedward://operator/hospital-a")


@bad("cert-identity")
def two_identities(b: Bench) -> Act:
    return client(b, "fedward://hospital/hospital-a", "fedward://coordinator/hospital-a")


@bad("cert-identity")
def common_name_only(b: Bench) -> Act:
    return client(b)


@bad("cert-usage")
def server_certificate_at_a_hospital(b: Bench) -> Act:
    cert, key = b.good()
    return lambda: check_client_files(cert, key, b.roots, site="hospital-a", now=NOW)


@bad("cert-order")
def root_before_leaf(b: Bench) -> Act:
    leaf, middle = below(b)
    return b.server(replace(middle, key=leaf.key), leaf)


@bad("cert-order")
def chain_in_the_wrong_order(b: Bench) -> Act:
    upper = craft(b.root, "upper", ca=True, path_length=1, usages=None, names=None)
    lower = craft(upper, "lower", ca=True, path_length=0, usages=None, names=None)
    return b.server(craft(lower), upper, lower)


@bad("cert-stray")
def stray_certificate(b: Bench) -> Act:
    return b.server(craft(b.root), craft_root("another CA"))


@bad("cert-forged")
def forged_intermediate(b: Bench) -> Act:
    leaf, _ = below(b)
    return b.server(leaf, below(b)[1])


@bad("ca-not-root")
def leaf_among_the_roots(b: Bench) -> Act:
    write_roots(b.roots, b.root, craft(b.root))
    return b.check(*b.good())


@bad("ca-not-root")
def self_signed_leaf_as_root(b: Bench) -> Act:
    path = write_roots(b.folder / "x.crt", craft(None))
    return lambda: check_ca_file(path, now=NOW)


@bad("cert-expired")
def ended_root(b: Bench) -> Act:
    write_roots(b.roots, craft_root(key=b.root.key, begin=NOW - 9 * DAY, end=NOW - DAY))
    return b.check(*b.good())


@bad("cert-garbage")
def garbage_roots(b: Bench) -> Act:
    b.roots.write_text("-----BEGIN NOTHING-----")
    return b.check(*b.good())


@bad("crl-garbage")
def garbage_list(b: Bench) -> Act:
    return b.server(craft(b.root), crl=b.write("no list"))


@bad("crl-garbage")
def list_of_noise(b: Bench) -> Act:
    noise = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    return b.server(craft(b.root), crl=b.write(noise))


@bad("crl-none")
def list_of_another_ca(b: Bench) -> Act:
    return b.server(craft(b.root), crl=crl(b, craft_root("another CA")))


@bad("crl-forged")
def forged_list(b: Bench) -> Act:
    return b.server(craft(b.root), crl=crl(b, craft_root()))


@bad("crl-expired")
def ended_list(b: Bench) -> Act:
    return b.server(craft(b.root), crl=crl(b, b.root, begin=NOW - 9 * DAY, end=NOW - DAY))


@bad("crl-not-yet")
def list_of_tomorrow(b: Bench) -> Act:
    return b.server(craft(b.root), crl=crl(b, b.root, begin=NOW + DAY, end=NOW + 9 * DAY))


@bad("cert-revoked")
def revoked_certificate(b: Bench) -> Act:
    leaf = craft(b.root)
    return b.server(leaf, crl=crl(b, b.root, leaf))
