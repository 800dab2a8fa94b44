"""Files, private keys and public keys that are refused."""

import os
import subprocess

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from certs import keys
from certs.enrolment import install
from certs.inspection import (
    check_node_key,
    check_server_files,
    check_signing_key,
)
from certs.local import make_federation
from tests.certs.judges import NOW, craft, write_pair
from tests.certs.workbench import Act, Bench, bad, node, weak_rsa


@bad("file-missing")
def no_certificate(b: Bench) -> Act:
    return b.check(b.folder / "none.crt", b.good()[1])


@bad("file-missing")
def no_key(b: Bench) -> Act:
    return b.check(b.good()[0], b.folder / "none.key")


@bad("file-empty")
def empty_certificate(b: Bench) -> Act:
    return b.check(b.write(b"\n \n"), b.good()[1])


@bad("file-not-regular")
def folder_for_certificate(b: Bench) -> Act:
    return b.check(b.folder, b.good()[1])


@bad("file-not-regular")
def pipe_for_certificate(b: Bench) -> Act:
    os.mkfifo(b.folder / "pipe")
    return b.check(b.folder / "pipe", b.good()[1])


@bad("file-unreadable")
def link_to_itself(b: Bench) -> Act:
    (b.folder / "loop").symlink_to(b.folder / "loop")
    return b.check(b.folder / "loop", b.good()[1])


@bad("file-oversized")
def oversized_certificate(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(b.write(cert.read_bytes() * 200), key)


@bad("file-oversized")
def oversized_request(b: Bench) -> Act:
    path = b.site() / "request.json"
    path.write_bytes(path.read_bytes() + b" " * 65536)
    return b.approving(path, fingerprint="0" * 32)


@bad("file-oversized")
def oversized_bundle(b: Bench) -> Act:
    folder, bundle = b.enrolled()
    bundle.write_bytes(bundle.read_bytes() + b" " * 65536)
    return lambda: install(bundle, folder, now=NOW)


@bad("file-unwritable")
def federation_below_a_file(b: Bench) -> Act:
    b.write("", "file")
    return lambda: make_federation(b.folder / "file" / "x", ["hospital-a"])


@bad("key-open")
def key_that_others_read(b: Bench) -> Act:
    cert, key = b.good()
    key.chmod(0o644)
    return b.check(cert, key)


@bad("key-open")
def key_that_the_group_writes(b: Bench) -> Act:
    cert, key = b.good()
    key.chmod(0o660)
    return lambda: check_server_files(cert, key, b.roots, now=NOW, group_may_read=True)


@bad("key-truncated")
def truncated_key(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(cert, b.write(key.read_bytes()[:120]))


@bad("key-garbage")
def garbage_key(b: Bench) -> Act:
    return b.check(b.good()[0], b.write(b"\x00\xff not a key"))


@bad("key-garbage")
def key_with_flipped_bytes(b: Bench) -> Act:
    cert, key = b.good()
    return b.check(cert, b.write(key.read_bytes().replace(b"MIGH", b"MXGH")))


@bad("key-is-certificate")
def certificate_for_key(b: Bench) -> Act:
    cert, _ = b.good()
    cert.chmod(0o600)
    return b.check(cert.rename(b.folder / "x"), b.write((b.folder / "x").read_bytes()))


@bad("key-locked")
def locked_key(b: Bench) -> Act:
    leaf = craft(b.root)
    cert, _ = write_pair(b.folder, leaf)
    return b.check(cert, b.write(keys.private_pem(leaf.key, "secret")))


@bad("key-passphrase")
def wrong_passphrase(b: Bench) -> Act:
    path = b.write(keys.private_pem(keys.new_certificate_key(), "secret"))
    return lambda: keys.load_certificate_key(path, passphrase="Secret")


@bad("key-swapped")
def swapped_key(b: Bench) -> Act:
    return b.check(b.good()[0], b.write(keys.private_pem(keys.new_certificate_key())))


@bad("key-kind")
def signing_key_for_tls(b: Bench) -> Act:
    return b.check(b.good()[0], b.write(keys.private_pem(keys.new_signing_key())))


@bad("key-weak")
def rsa_1024_key(b: Bench) -> Act:
    return b.check(b.good()[0], b.write(keys.private_pem(weak_rsa())))


@bad("key-weak")
def rsa_1024_certificate(b: Bench) -> Act:
    return b.server(craft(b.root, key=weak_rsa()))


@bad("key-weak")
def p192_certificate(b: Bench) -> Act:
    return b.server(craft(b.root, key=ec.generate_private_key(ec.SECP224R1())))


@bad("node-key-kind")
def ed25519_node_key(b: Bench) -> Act:
    return node(b, ed25519.Ed25519PrivateKey.generate())


@bad("node-key-kind")
def rsa_node_key(b: Bench) -> Act:
    return node(b, rsa.generate_private_key(65537, 2048))


@bad("node-key-format")
def pem_node_key(b: Bench) -> Act:
    path = b.write(keys.private_pem(keys.new_node_key()))
    return lambda: check_node_key(path)


@bad("key-locked")
def locked_node_key(b: Bench) -> Act:
    path = b.folder / "node.key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "secret", "-f", path], check=True
    )
    return lambda: check_node_key(path)


@bad("key-truncated")
def truncated_node_key(b: Bench) -> Act:
    path = b.site() / "node.key"
    path.write_bytes(path.read_bytes()[:200])
    return lambda: check_node_key(path)


@bad("node-public-key")
def garbage_node_public_key(b: Bench) -> Act:
    site, public = b.site(), b.write("ssh-ed25519 AAAA nobody")
    return lambda: check_node_key(site / "node.key", public)


@bad("node-key-swapped")
def public_half_of_another_node(b: Bench) -> Act:
    one, other = b.site(), b.site("hospital-b")
    return lambda: check_node_key(one / "node.key", other / "node.pub")


@bad("signing-key-kind")
def node_key_for_signing(b: Bench) -> Act:
    path = b.write(keys.private_pem(keys.new_node_key()))
    return lambda: check_signing_key(path)


@bad("signing-public-key")
def node_public_for_signing(b: Bench) -> Act:
    site = b.site()
    return lambda: check_signing_key(site / "signing.key", site / "node.pub")


@bad("signing-key-swapped")
def public_half_of_another_trainer(b: Bench) -> Act:
    one, other = b.site(), b.site("hospital-b")
    return lambda: check_signing_key(one / "signing.key", other / "signing.pub")
