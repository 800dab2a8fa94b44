"""`fedward certs`: the coordinator's commands over hospitals' enrolment and all certificates."""

import datetime as dt
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from certs import audit as certs_audit
from certs.enrolment import read_request
from certs.files import write_atomic
from certs.registry import SiteEntry
from protocol.errors import FedwardError

from . import launcher
from .control import Address, ControlPlane
from .coordinator import Coordinator, initialise, read_passphrase, renewal_needed
from .federation import existing

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="The coordinator's side of trust: let hospitals in, renew, shut out. Every act is written "
    "to an audit log.",
)
out = Console()

Folder = Annotated[
    Path,
    typer.Option("--folder", help="the coordinator's folder", envvar="FEDWARD_FOLDER"),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="file with the passphrase of the CA's key, when that is encrypted",
        envvar="FEDWARD_CA_PASSPHRASE_FILE",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for a program to read")]
Valid = Annotated[str, typer.Option("--valid", help="lifetime: 30d, 12h, 10m or 90s")]

DEFAULT_FOLDER = Path(".fedward")
_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


@app.command()
def init(
    names: Annotated[
        list[str],
        typer.Option("--name", help="a DNS name or address of the servers; may be repeated"),
    ],
    folder: Folder = DEFAULT_FOLDER,
    passphrase_file: PassphraseFile = None,
    intermediate: Annotated[
        bool,
        typer.Option("--intermediate", help="sign with a second CA, so that the root can go away"),
    ] = False,
) -> None:
    """Make a certificate authority and the servers' certificates, for an aggregator elsewhere.

    A federation of this machine has its own already (`fedward up`). Copy certs/aggregator and
    certs/control-plane to their machines, and certs/registry/sites.json to both.

        fedward certs init --name fl.example.org --passphrase-file pass.txt
    """
    made = initialise(
        folder, names, passphrase=read_passphrase(passphrase_file), intermediate=intermediate
    )
    out.print(f"wrote {made.certs}")
    out.print(f"The CA's fingerprint, for hospitals to compare: [bold]{made.ca.fingerprint}[/]")


@app.command()
def approve(
    request: Annotated[Path, typer.Argument(help="the request that came from the hospital")],
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="the digits that the hospital read out")
    ] = "",
    renew: Annotated[
        bool, typer.Option("--renew", help="a new certificate for a hospital that is enrolled")
    ] = False,
    readmit: Annotated[
        bool, typer.Option("--readmit", help="let a revoked hospital back in, with new keys")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option("--out", help="where the bundle goes; else SITE-bundle.json here")
    ] = None,
    valid: Valid = "30d",
    aggregator: Annotated[
        str,
        typer.Option(
            "--aggregator",
            help="HOST:PORT under which the hospital reaches the aggregator",
            envvar="FEDWARD_AGGREGATOR_ADDRESS",
        ),
    ] = "",
    control_plane: Annotated[
        str,
        typer.Option("--control-plane", help="its URL", envvar="FEDWARD_CONTROL_PLANE_URL"),
    ] = "",
    folder: Folder = DEFAULT_FOLDER,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a hospital in: sign its certificate, enter its keys, write the bundle to send back.

    Ask the hospital for its fingerprint by telephone; `fedward node enrol` showed it there. A
    running aggregator registers the hospital's node within seconds.

        fedward certs approve request.json --fingerprint 1a2b-3c4d-...
    """
    asked = read_request(request)
    coordinator = Coordinator.open(folder, read_passphrase(passphrase_file))
    approval = coordinator.approve(
        request,
        fingerprint=fingerprint,
        renew=renew,
        readmit=readmit,
        lifetime=lifetime(valid),
        aggregator=aggregator,
        control_plane=control_plane,
    )
    file = bundle or Path(f"{approval.site}-bundle.json")
    write_atomic(file, approval.bundle)
    ca = coordinator.ca.fingerprint
    if as_json:
        _print_json(
            {
                "site": approval.site,
                "bundle": str(file),
                "fingerprint": asked.fingerprint,
                "serial": approval.serial,
                "not_after": approval.not_after.isoformat(),
                "renewed": approval.renewed,
                "ca_fingerprint": ca,
            }
        )
        return
    word = "renewed" if approval.renewed else "enrolled"
    out.print(f"{approval.site}: {word} until {approval.not_after:%Y-%m-%d %H:%M} UTC")
    out.print(f"Send {file} back: `fedward node install {file.name}` there shows the fingerprint")
    out.print(f"of this CA, to be compared by telephone: [bold]{ca}[/]")


@app.command(name="list")
def list_all(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Show every hospital and every certificate, with its last day."""
    coordinator = Coordinator.open(folder)
    ca, sites = coordinator.ca, coordinator.sites()
    waiting = renewal_needed(sites, ca)
    if as_json:
        _print_json(
            {
                "ca_fingerprint": ca.fingerprint,
                "ca_change_since": ca.rollover_since or None,
                "sites": {
                    name: _site(entry) | {"renew_for_new_ca": name in waiting}
                    for name, entry in sites.items()
                },
                "certificates": {
                    name: {"serial": report.serial, "not_after": report.not_after.isoformat()}
                    for name, report in coordinator.certificates()
                },
            }
        )
        return
    out.print(_sites_table(sites, waiting))
    table = Table(title="Certificates", title_justify="left")
    for column in ("part", "serial", "until"):
        table.add_column(column)
    for name, report in coordinator.certificates():
        table.add_row(name, report.serial[:16], f"{report.not_after:%Y-%m-%d %H:%M} UTC")
    out.print(table)
    out.print(f"The CA's fingerprint: [bold]{ca.fingerprint}[/]")
    if ca.rolling:
        out.print(
            f"The CA is changing since {ca.rollover_since}; to renew first: "
            f"{', '.join(waiting) or 'nobody'}. Then: fedward certs rotate --ca --finish"
        )


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(help="the hospital's name; see `fedward certs list`")],
    reason: Annotated[str, typer.Option("--reason", help="for the audit log")] = "",
    folder: Folder = DEFAULT_FOLDER,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Shut a hospital out, now: its certificate, its node key and its signatures.

    The aggregator refuses its next request, also in the middle of a round, and the round goes on
    with the others. Doing it again is no harm, and finishes what a crash left undone.
    """
    done = Coordinator.open(folder, read_passphrase(passphrase_file)).revoke(site, reason)
    if as_json:
        _print_json({"site": done.site, "revoked_at": done.when, "serials": list(done.serials)})
        return
    out.print(f"{done.site}: revoked since {done.when}, {len(done.serials)} certificate(s)")
    out.print("If it may ever come back: new keys there, then `fedward certs approve --readmit`.")


@app.command()
def rotate(
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="a name of the servers from now on; may be repeated"),
    ] = None,
    valid: Valid = "30d",
    crl: Annotated[bool, typer.Option("--crl", help="only make the revocation lists anew")] = False,
    change_ca: Annotated[
        bool, typer.Option("--ca", help="change the CA: begin, with both roots trusted")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="with --ca: trust the old root no longer")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="with --finish: although somebody still needs it")
    ] = False,
    folder: Folder = DEFAULT_FOLDER,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Renew the servers', the coordinator's and the operator's certificates; nothing restarts.

    The servers take new files within a second, in the middle of a round too. Hospitals renew their
    own: `fedward node enrol` there, `fedward certs approve --renew` here.

    A change of CA has three steps:

        fedward certs rotate --ca            both roots are trusted from now on
        (every hospital renews)              `fedward certs list` says who has not
        fedward certs rotate --ca --finish   the old root is trusted no longer
    """
    _check_rotate(names, crl, change_ca, finish, force)
    coordinator = Coordinator.open(folder, read_passphrase(passphrase_file))
    if crl:
        coordinator.refresh_lists()
        _say({"crl": "renewed"}, "the revocation lists are new", as_json)
    elif change_ca and finish:
        digits = coordinator.finish_ca_change(force=force)
        _say({"ca_fingerprint": digits}, f"only this CA is trusted now: {digits}", as_json)
    elif change_ca:
        digits = coordinator.begin_ca_change()
        waiting = renewal_needed(coordinator.sites(), coordinator.ca)
        text = (
            f"the new CA's fingerprint is {digits}; both are trusted until --finish\n"
            f"These hospitals renew before that: {', '.join(waiting) or 'none has to'}"
        )
        _say({"ca_fingerprint": digits, "renew_for_new_ca": waiting}, text, as_json)
    else:
        reports = coordinator.rotate(names or [], lifetime(valid))
        rows = [
            {"file": str(r.file), "serial": r.serial, "not_after": r.not_after.isoformat()}
            for r in reports
        ]
        lines = [f"{r.file}: {r.serial}, until {r.not_after:%Y-%m-%d %H:%M} UTC" for r in reports]
        _say(rows, "\n".join(lines), as_json)


@app.command()
def audit(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Print what was done, oldest first, and check the log.

    Enrolments, revocations and rotations come from a log whose lines each name the one before, so
    a line that was edited or taken out is found. While a federation runs on this machine, the
    control plane's list is there too: studies started and stopped, log-ins, refusals.
    """
    acts = certs_audit.read(Coordinator(folder.resolve()).paths.registry) + _at_the_plane(folder)
    acts.sort(key=lambda act: str(act["time"]))
    if as_json:
        _print_json(acts)
        return
    table = Table()
    for column in ("time", "who", "act", "whom or what", "details"):
        table.add_column(column)
    for act in acts:
        details = ", ".join(f"{key} {value}" for key, value in act["details"].items() if value)
        table.add_row(act["time"], act["actor"], act["act"], act["subject"], details)
    out.print(table)


def lifetime(text: str) -> dt.timedelta:
    """`30d`, `12h`, `10m` or `90s` as a duration.

    Raises:
        FedwardError: it is none.
    """
    found = re.fullmatch(r"(\d{1,5})([dhms])", text.strip())
    if not found:
        raise FedwardError(f"--valid {text!r}: use a number with d, h, m or s, such as 30d or 12h")
    return dt.timedelta(**{_UNITS[found[2]]: int(found[1])})


def _check_rotate(
    names: list[str] | None, crl: bool, change_ca: bool, finish: bool, force: bool
) -> None:
    if (finish and not change_ca) or (force and not finish):
        raise FedwardError(
            "--finish belongs to --ca, and --force to --finish",
            hint="fedward certs rotate --ca --finish",
        )
    if sum((bool(names), crl, change_ca)) > 1:
        raise FedwardError("--name, --crl and --ca are three things to do; choose one at a time")


def _at_the_plane(folder: Path) -> list[dict[str, Any]]:
    """The control plane's audit list, in the same words; none while it does not run here."""
    federation = existing(folder)
    if federation is None or launcher.running(federation.layout) is None:
        return []
    return [
        {
            "time": dt.datetime.fromtimestamp(row.at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "actor": row.actor,
            "act": row.action,
            "subject": row.subject,
            "details": {"address": row.address},
        }
        for row in ControlPlane(Address.of(federation, "operator")).audit()
    ]


def _sites_table(sites: dict[str, SiteEntry], waiting: list[str]) -> Table:
    table = Table(title="Hospitals", title_justify="left")
    for column in ("hospital", "state", "since", "certificate until"):
        table.add_column(column)
    for name, entry in sites.items():
        state = "revoked" if entry.revoked else "to renew" if name in waiting else "enrolled"
        table.add_row(name, state, entry.revoked_at or entry.enrolled_at, entry.not_after)
    return table


def _site(entry: SiteEntry) -> dict[str, Any]:
    return {
        "enrolled_at": entry.enrolled_at,
        "renewed_at": entry.renewed_at or None,
        "revoked_at": entry.revoked_at,
        "reason": entry.reason or None,
        "serial": entry.serials[-1] if entry.serials else None,
        "not_after": entry.not_after,
    }


def _say(value: Any, text: str, as_json: bool) -> None:
    if as_json:
        _print_json(value)
    else:
        out.print(text, highlight=False, soft_wrap=True)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))
