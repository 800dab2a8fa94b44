"""What the coordinator's commands do, apart from how they are typed and printed.

    FOLDER/certs/   the CA, the servers' files, the registry and the audit log (certs.local)

The folder is that of `fedward up`, or one made by `fedward certs init` where the aggregator runs
elsewhere (a cluster, another machine) and is given the files.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from certs import CA, keys
from certs.enrolment import Approval, Revocation, Study, approve, revoke
from certs.inspection import CertificateReport, report_certificate
from certs.local import (
    SERVER_NAMES,
    FederationPaths,
    federation_paths,
    make_federation,
)
from certs.registry import Registry, SiteEntry
from certs.rotation import (
    begin_ca_change,
    finish_ca_change,
    refresh_lists,
    rotate_client,
    rotate_server,
)
from hospital_node.doctor import Check
from protocol.errors import FedwardError

from .federation import Layout, existing


@dataclass(frozen=True)
class Coordinator:
    """The coordinator's files, opened with the passphrase of the CA's key if it has one."""

    folder: Path
    passphrase: str = ""

    @classmethod
    def open(cls, folder: Path, passphrase: str = "") -> "Coordinator":
        """The coordinator's files in `folder`.

        Raises:
            FedwardError: there are none.
        """
        found = cls(folder.resolve(), passphrase)
        if not (found.paths.ca_folder / "state.json").exists():
            raise FedwardError(
                f"{found.certs}: no certificate authority here",
                hint="`fedward up` makes one for this machine, `fedward certs init` one for others",
            )
        return found

    @property
    def certs(self) -> Path:
        """Where certificates and keys lie."""
        return Layout(self.folder).certs

    @property
    def paths(self) -> FederationPaths:
        """Every file; of hospitals, those whose keys are on this machine."""
        folder = self.certs / "sites"
        here = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
        return federation_paths(self.certs, here)

    @property
    def registry(self) -> Registry:
        """The list of hospitals."""
        return Registry(self.paths.registry)

    @property
    def ca(self) -> CA:
        """The CA; its key is read when something is signed."""
        return CA.load(self.paths.ca_folder, passphrase=self.passphrase)

    def sites(self) -> dict[str, SiteEntry]:
        """Every hospital that was ever enrolled."""
        return self.registry.sites()

    def certificates(self) -> list[tuple[str, CertificateReport]]:
        """The certificates of the CA, the servers and the people, by the part's name."""
        paths = self.paths
        files = {
            "ca": paths.ca_folder / "ca.crt",
            "aggregator": paths.aggregator.cert,
            "control-plane": paths.control_plane.cert,
            "coordinator": paths.coordinator.cert,
            "operator": paths.operator.cert,
        }
        return [(name, report_certificate(file)) for name, file in files.items() if file.exists()]

    # -- hospitals ---------------------------------------------------------------------------

    def approve(
        self,
        request: Path,
        *,
        fingerprint: str,
        renew: bool,
        readmit: bool,
        lifetime: dt.timedelta,
        aggregator: str,
        control_plane: str,
    ) -> Approval:
        """Enrol or renew a hospital: see `certs.enrolment.approve`."""
        study = self._study(aggregator, control_plane)
        return approve(
            self.ca,
            request,
            self.registry,
            study,
            fingerprint=fingerprint,
            renew=renew,
            readmit=readmit,
            lifetime=lifetime,
        )

    def revoke(self, site: str, reason: str) -> Revocation:
        """Shut a hospital out, in the registry and on every revocation list."""
        done = revoke(self.ca, site, self.registry, reason=reason)
        self.refresh_lists()
        return done

    def _study(self, aggregator: str, control_plane: str) -> Study:
        local = existing(self.folder)
        if local is not None:
            aggregator = aggregator or f"127.0.0.1:{local.ports['fleet']}"
            control_plane = control_plane or local.dashboard
        if not aggregator:
            raise FedwardError(
                "the hospital must be told where the aggregator is",
                hint="add --aggregator HOST:PORT, as hospitals reach it",
            )
        return Study(keys.load_signing_public(self.paths.study_public), aggregator, control_plane)

    # -- certificates of ours ----------------------------------------------------------------

    def rotate(self, names: Sequence[str], lifetime: dt.timedelta) -> list[CertificateReport]:
        """New keys and leaves for the servers, the coordinator and the operator."""
        ca, paths = self.ca, self.paths
        reports = [
            rotate_server(ca, server.folder, paths.registry, names=names, lifetime=lifetime)
            for server in (paths.aggregator, paths.control_plane)
            if names or server.cert.exists()
        ]
        reports += [
            rotate_client(ca, client.folder, paths.registry, lifetime=lifetime)
            for client in (paths.coordinator, paths.operator)
            if client.cert.exists()
        ]
        self._bring_up_to_date()
        return reports

    def refresh_lists(self) -> None:
        """A fresh revocation list wherever one lies."""
        paths = self.paths
        servers = [server.folder for server in (paths.aggregator, paths.control_plane)]
        refresh_lists(self.ca, [folder for folder in servers if folder.exists()])

    def begin_ca_change(self) -> str:
        """A new root beside the old one; everybody on this machine moves to it at once."""
        fingerprint = begin_ca_change(self.ca, self.paths.registry)
        self._bring_up_to_date()
        return fingerprint

    def finish_ca_change(self, *, force: bool) -> str:
        """Trust the old root no longer.

        The servers keep sending the new root signed by the old one until their next rotation, so
        a process that read its roots before the change goes on until then.
        """
        ca = self.ca
        finish_ca_change(ca, self.paths.registry, force=force)
        self._bring_up_to_date()
        return ca.fingerprint

    def _bring_up_to_date(self) -> None:
        """Publish roots and lists; give new leaves to the hospitals whose keys are here."""
        paths = self.paths
        names: Sequence[str] = SERVER_NAMES
        if paths.aggregator.cert.exists():
            names = report_certificate(paths.aggregator.cert).names or names
        make_federation(self.certs, list(paths.sites), names, passphrase=self.passphrase)


def initialise(
    folder: Path, names: Sequence[str], *, passphrase: str, intermediate: bool
) -> Coordinator:
    """A CA, the servers' certificates and an empty registry, for an aggregator elsewhere.

    Raises:
        CertError: `ca-exists`, `name-server`.
        FedwardError: the folder belongs to a federation of this machine.
    """
    made = Coordinator(folder.resolve(), passphrase)
    if existing(folder) is not None:
        raise FedwardError(
            f"{folder}: a federation of this machine lives there and has a CA already",
            hint="`fedward certs list` shows it",
        )
    CA.create(intermediate=intermediate).save(made.paths.ca_folder, passphrase=passphrase)
    make_federation(made.certs, [], names, passphrase=passphrase)
    return made


def certificate_checks(folder: Path) -> list[tuple[str, Check]]:
    """For `fedward doctor`: until when each certificate is good, of ours and of hospitals."""
    coordinator = Coordinator.open(folder)
    checks = [
        (name, _end_of(report.not_after, _renewal(name)))
        for name, report in coordinator.certificates()
    ]
    for name, entry in coordinator.sites().items():
        if not entry.revoked:
            end = dt.datetime.fromisoformat(entry.not_after.replace("Z", "+00:00"))
            checks.append((name, _end_of(end, _renewal(""))))
    return checks


def _renewal(name: str) -> str:
    if not name:
        return "`fedward node enrol` at the hospital, then `fedward certs approve --renew` here"
    return "`fedward certs rotate --ca`" if name == "ca" else "`fedward certs rotate`"


def _end_of(end: dt.datetime, renewal: str) -> Check:
    """Said from 30 days on, urged from 7, a fault on the last."""
    left = end - dt.datetime.now(dt.UTC)
    day = f"{end:%Y-%m-%d %H:%M} UTC"
    if left < dt.timedelta(days=1):
        word = "has ended" if left < dt.timedelta(0) else "ends within a day"
        return Check("certificate", False, f"{word}, {day}", renewal)
    urged = f"; {renewal}" if left < dt.timedelta(days=7) else ""
    count = f" ({left.days} days left{urged})" if left < dt.timedelta(days=30) else ""
    return Check("certificate", True, f"valid until {day}{count}")


def renewal_needed(sites: dict[str, SiteEntry], ca: CA) -> list[str]:
    """The hospitals that still live on the old root while the CA changes."""
    if not ca.rolling:
        return []
    new = {issued.serial for issued in ca.issued()}
    return [
        name
        for name, entry in sites.items()
        if not entry.revoked and entry.serials and entry.serials[-1] not in new
    ]


def read_passphrase(file: Path | None) -> str:
    """The first line of a passphrase's file; empty without one.

    Raises:
        FedwardError: it cannot be read, or is empty.
    """
    if file is None:
        return ""
    try:
        words = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FedwardError(f"{file}: the passphrase cannot be read: {error}") from error
    if not words or not words[0]:
        raise FedwardError(f"{file}: the passphrase is empty")
    return words[0]
