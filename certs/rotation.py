"""Renewing what runs: a server's leaf, a person's leaf, the revocation list, the CA itself.

Nothing here restarts anything. A process that reloads by itself (the edge) reads `server.pem`,
which holds key and chain in one file and is replaced in one step; the next handshake shows the new
serial. A change of CA has three steps, with as much time between them as the hospitals need:

    begin_ca_change    a new root, signed by the old one too; trust.pem holds both
    rotate_*, renew    everybody gets a leaf of the new root, and both roots to trust
    finish_ca_change   refused while somebody still lives on the old root
"""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

from certs import audit
from certs._x509 import stamp, utc_now
from certs.ca import CA, CRL_LIFETIME, LEAF_LIFETIME
from certs.files import locked, make_folder, write_atomic
from certs.inspection import (
    CertificateReport,
    check_client_files,
    check_server_files,
    report_certificate,
)
from certs.local import client_paths, server_paths
from certs.names import Role, parse_identity
from certs.sentences import refuse


def rotate_server(
    ca: CA,
    folder: Path,
    registry_folder: Path,
    *,
    names: Sequence[str] = (),
    lifetime: dt.timedelta = LEAF_LIFETIME,
    actor: str = "coordinator",
    now: dt.datetime | None = None,
) -> CertificateReport:
    """A new key and leaf for the server in `folder`, with fresh `ca.crt` and `crl.pem`.

    Args:
        ca: signs it.
        folder: holds `server.crt`, `.key` and `.pem`.
        registry_folder: where the audit log is.
        names: under which the server is reached; those of the old leaf when left out.
        lifetime: of the leaf.
        actor: for the audit log.
        now: the time, for tests.

    Raises:
        CertError: `name-server*`, `ca-*`, `key-*`, `file-*`; the old files are then untouched.
    """
    now = now or utc_now()
    paths = server_paths(make_folder(folder))
    wanted = tuple(names) or report_certificate(paths.cert).names
    with locked(folder):
        leaf = ca.issue_server(wanted, lifetime, now=now)
        crl = ca.crl_pem(now=now)
        details = {"serial": leaf.serial, "not_after": stamp(leaf.not_after)}
        audit.record(
            registry_folder, "rotate-server", wanted[0], actor=actor, details=details, now=now
        )
        write_atomic(paths.ca, ca.trust_pem)
        write_atomic(paths.crl, crl)
        leaf.write(folder, "server")
    return check_server_files(paths.cert, paths.key, paths.ca, crl=paths.crl, now=now)


def rotate_client(
    ca: CA,
    folder: Path,
    registry_folder: Path,
    *,
    lifetime: dt.timedelta = LEAF_LIFETIME,
    actor: str = "coordinator",
    now: dt.datetime | None = None,
) -> CertificateReport:
    """A new key and leaf for the coordinator or operator in `folder`.

    A hospital's leaf is not renewed so, for its key is not here: it asks (`certs.enrolment`).

    Raises:
        CertError: `cert-identity` when `folder` holds no such person's leaf; `ca-*`, `file-*`.
    """
    now = now or utc_now()
    paths = client_paths(folder)
    names = report_certificate(paths.cert).names
    identity = parse_identity(names[0]) if len(names) == 1 else None
    if identity is None or identity[0] is Role.HOSPITAL:
        expected = "a coordinator or an operator"
        raise refuse("cert-identity", file=paths.cert, got=", ".join(names), expected=expected)
    role, name = identity
    with locked(folder):
        leaf = ca.issue_client(name, role, lifetime, now=now)
        details = {"serial": leaf.serial, "not_after": stamp(leaf.not_after), "role": role.value}
        audit.record(registry_folder, "rotate-client", name, actor=actor, details=details, now=now)
        write_atomic(paths.ca, ca.trust_pem)
        leaf.write(folder, "client")
    return check_client_files(paths.cert, paths.key, paths.ca, site=name, role=role, now=now)


def refresh_lists(
    ca: CA,
    folders: Sequence[Path],
    *,
    lifetime: dt.timedelta = CRL_LIFETIME,
    now: dt.datetime | None = None,
) -> None:
    """A fresh revocation list in the CA's folder and in every server folder of `folders`.

    To be done well before a list ends (daily for a list of a week), and at once after a
    revocation: an ended list locks every hospital out.

    Raises:
        CertError: `ca-offline`, `key-*`, `file-unwritable`.
    """
    now = now or utc_now()
    ca.write_public_files(lifetime=lifetime, now=now)
    crl = ca.crl_pem(lifetime=lifetime, now=now)
    for folder in folders:
        write_atomic(folder / "crl.pem", crl)


def begin_ca_change(
    ca: CA, registry_folder: Path, *, actor: str = "coordinator", now: dt.datetime | None = None
) -> str:
    """Make the new root beside the old one; its fingerprint, for those who enrol from now on.

    Raises:
        CertError: `rollover-running`, `ca-offline`, `key-*`.
    """
    ca.begin_rollover(now=now)
    details = {"fingerprint": ca.fingerprint}
    audit.record(registry_folder, "begin-ca-change", "ca", actor=actor, details=details, now=now)
    return ca.fingerprint


def finish_ca_change(
    ca: CA,
    registry_folder: Path,
    *,
    force: bool = False,
    actor: str = "coordinator",
    now: dt.datetime | None = None,
) -> None:
    """Trust the old root no longer, and destroy its key.

    Args:
        ca: in the middle of a change.
        registry_folder: where the audit log is.
        force: even though certificates of the old root still run; their holders enrol again.
        actor: for the audit log.
        now: the time, for tests.

    Raises:
        CertError: `rollover-none`, `rollover-needed`.
    """
    ca.finish_rollover(force=force, now=now)
    details = {"fingerprint": ca.fingerprint, "forced": str(force).lower()}
    audit.record(registry_folder, "finish-ca-change", "ca", actor=actor, details=details, now=now)
