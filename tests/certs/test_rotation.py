"""Leaves, lists and the CA are renewed while everything runs."""

from pathlib import Path

import pytest

from certs import CA, CertError, audit, leaf
from certs.files import write_atomic
from certs.inspection import check_ca_file, check_server_files, report_certificate
from certs.local import FederationPaths, make_federation
from certs.rotation import (
    begin_ca_change,
    finish_ca_change,
    refresh_lists,
    rotate_client,
    rotate_server,
)
from tests.certs.judges import DAY, NOW


@pytest.fixture
def paths(tmp_path: Path) -> FederationPaths:
    return make_federation(tmp_path, ["hospital-a"], now=NOW)


def test_a_servers_leaf_is_rotated_with_its_names(paths: FederationPaths) -> None:
    """A new serial and a new key for the same names; the act is in the log."""
    server, ca = paths.aggregator, CA.load(paths.ca_folder)
    old, key = report_certificate(server.cert), server.key.read_bytes()
    new = rotate_server(ca, server.folder, paths.registry, now=NOW + DAY)
    assert new.serial != old.serial
    assert new.names == old.names
    assert server.key.read_bytes() != key
    assert audit.read(paths.registry)[-1]["details"]["serial"] == new.serial


def test_the_pair_is_never_half_new(
    paths: FederationPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads `server.pem` during a rotation finds a key and its own certificate."""
    server, seen = paths.aggregator, []
    write = write_atomic

    def looking(path: Path, data: bytes, **options: int) -> None:
        seen.append(check_server_files(server.pair, server.pair, server.ca, now=NOW).serial)
        write(path, data, **options)
        seen.append(check_server_files(server.pair, server.pair, server.ca, now=NOW).serial)

    monkeypatch.setattr(leaf, "write_atomic", looking)
    rotate_server(CA.load(paths.ca_folder), server.folder, paths.registry, now=NOW)
    assert seen


def test_new_names_come_with_rotation(paths: FederationPaths) -> None:
    """`names` replaces the names of the old leaf."""
    ca = CA.load(paths.ca_folder)
    new = rotate_server(
        ca, paths.aggregator.folder, paths.registry, names=["fl.example.org", "::1"], now=NOW
    )
    assert new.names == ("fl.example.org", "::1")


def test_a_persons_leaf_is_rotated(paths: FederationPaths) -> None:
    """A coordinator's and an operator's leaf keep name and role."""
    ca = CA.load(paths.ca_folder)
    for person in (paths.coordinator, paths.operator):
        old = report_certificate(person.cert)
        new = rotate_client(ca, person.folder, paths.registry, now=NOW)
        assert new.names == old.names
        assert new.serial != old.serial


def test_lists_are_refreshed_where_they_are_read(paths: FederationPaths) -> None:
    """A list that would have ended is replaced in every folder that is named."""
    server, later = paths.aggregator, NOW + 10 * DAY
    with pytest.raises(CertError, match="the revocation list ended at"):
        check_server_files(server.cert, server.key, server.ca, crl=server.crl, now=later)
    refresh_lists(CA.load(paths.ca_folder), [server.folder], now=later)
    check_server_files(server.cert, server.key, server.ca, crl=server.crl, now=later)


def test_the_ca_changes_in_three_steps(paths: FederationPaths) -> None:
    """Begin, renew everybody, finish; nothing is refused on the way, and the old key is gone."""
    ca, server = CA.load(paths.ca_folder), paths.aggregator
    old_keys = set(paths.ca_folder.glob("ca-*.key"))
    begin_ca_change(ca, paths.registry, now=NOW)
    assert len(check_ca_file(paths.ca)) == 2
    check_server_files(server.cert, server.key, paths.ca, crl=paths.crl, now=NOW)
    make_federation(paths.folder, ["hospital-a"], now=NOW)  # renews what the old root signed
    finish_ca_change(ca, paths.registry, now=NOW)
    assert len(check_ca_file(paths.ca)) == 1
    check_server_files(server.cert, server.key, paths.ca, now=NOW)
    assert not old_keys & set(paths.ca_folder.glob("ca-*.key"))
    acts = [act["act"] for act in audit.read(paths.registry)]
    assert acts == ["begin-ca-change", "finish-ca-change"]


def test_a_refused_rotation_changes_nothing(paths: FederationPaths) -> None:
    """With the CA's key offline the server keeps the leaf that it has."""
    next(paths.ca_folder.glob("ca-*.key")).unlink()
    before = {path: path.read_bytes() for path in paths.aggregator.folder.iterdir()}
    with pytest.raises(CertError, match="not on this machine"):
        rotate_server(CA.load(paths.ca_folder), paths.aggregator.folder, paths.registry, now=NOW)
    after = {p: p.read_bytes() for p in paths.aggregator.folder.iterdir() if "lock" not in p.name}
    assert after == before
