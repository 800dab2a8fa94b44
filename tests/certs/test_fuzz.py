"""Files with random damage: refused with a sentence or accepted, never a traceback."""

import base64
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certs import CertError
from certs.enrolment import install, read_request
from certs.inspection import check_node_key, check_server_files, check_signing_key
from tests.certs.judges import NOW, craft, write_pair
from tests.certs.workbench import Bench, new_bench

ROUNDS = 150  # 5000 of each were run when this was written


def damage(data: bytes, dice: random.Random) -> bytes:
    """`data` with a few bytes changed, cut out, doubled or moved."""
    for _ in range(dice.randint(1, 3)):
        place, length = dice.randrange(len(data)), dice.randint(1, 8)
        piece = data[place : place + length]
        new = dice.choice([bytes([dice.randrange(256)]), b"", piece * 2, b'"', b"\n", b"{", b"\0"])
        data = data[:place] + new + data[place + length :]
    return data or b"x"


def survives(path: Path, act: Callable[[], object], seed: int) -> int:
    """Run `act` on damaged copies of the file at `path`; how many were refused."""
    dice, good, refused = random.Random(seed), path.read_bytes(), 0
    for _ in range(ROUNDS):
        path.write_bytes(damage(good, dice))
        try:
            act()
        except CertError:
            refused += 1
    path.write_bytes(good)
    act()
    return refused


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return new_bench(tmp_path)


def test_damaged_server_files(bench: Bench) -> None:
    """Certificate, key and roots, each damaged in turn."""
    cert, key = write_pair(bench.folder, craft(bench.root))
    for seed, path in enumerate((cert, key, bench.roots)):
        act = lambda: check_server_files(cert, key, bench.roots, name="localhost")  # noqa: E731
        assert survives(path, act, seed) > ROUNDS / 2


def test_damaged_certificate_inside_its_armour(bench: Bench) -> None:
    """Damage to the DER itself, which a PEM decoder would not see."""
    cert, key = write_pair(bench.folder, craft(bench.root))
    good = x509.load_pem_x509_certificate(cert.read_bytes())
    der, dice, refused = good.public_bytes(serialization.Encoding.DER), random.Random(4), 0

    for _ in range(ROUNDS):
        damaged = damage(der, dice)
        if damaged == der:  # a byte was replaced by itself
            refused += 1
        body = base64.encodebytes(damaged)
        cert.write_bytes(b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n")
        try:
            check_server_files(cert, key, bench.roots, name="localhost")
        except CertError:
            refused += damaged != der
    assert refused == ROUNDS


def test_damaged_identity_keys(bench: Bench) -> None:
    """A node key and a signing key."""
    site = bench.site()
    node, signing = site / "node.key", site / "signing.key"
    assert survives(node, lambda: check_node_key(node, site / "node.pub"), 5) > ROUNDS / 2
    assert survives(signing, lambda: check_signing_key(signing, site / "signing.pub"), 6)


def test_damaged_request(bench: Bench) -> None:
    """A request."""
    path = bench.site() / "request.json"
    assert survives(path, lambda: read_request(path, now=NOW), 7) > ROUNDS / 2


def test_damaged_bundle(bench: Bench) -> None:
    """A bundle."""
    folder, bundle = bench.enrolled()
    assert survives(bundle, lambda: install(bundle, folder, now=NOW), 8) > ROUNDS / 2
