"""`fedward node`: a hospital's two commands to join a federation."""

import json
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from rich.console import Console

from certs.enrolment import Installed, install, make_request
from protocol.errors import FedwardError
from protocol.files import write_atomic

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="A hospital's side of trust: make its keys here, ask to be let in, install the answer. "
    "Private keys never leave the folder.",
)
out = Console()

Keys = Annotated[
    Path,
    typer.Option("--keys", help="the folder of this hospital's keys", envvar="FEDWARD_NODE_KEYS"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for a program to read")]
DEFAULT_KEYS = Path("fedward-keys")


@app.command()
def enrol(
    site: Annotated[str, typer.Argument(help="this hospital's name, as agreed: st-mary")],
    keys: Keys = DEFAULT_KEYS,
    new_keys: Annotated[
        bool,
        typer.Option("--new-keys", help="put the old keys aside, as after a revocation"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make this hospital's keys and a request for the coordinator; also to renew.

    Send the request by any channel: it holds no secret. Read the fingerprint to the coordinator
    over the telephone: it says that the request is really yours. Asking again with the same keys,
    also with a later version, shows the same fingerprint, and is how a certificate is renewed.
    """
    made = make_request(keys, site, new_keys=new_keys)
    if as_json:
        _print_json({"site": made.site, "request": str(made.path), "fingerprint": made.fingerprint})
        return
    out.print(f"Request: {made.path}  (send it to the coordinator)", soft_wrap=True)
    out.print(f"Fingerprint, to be read out by telephone: [bold]{made.fingerprint}[/]")
    out.print(f"When the bundle comes back: fedward node install BUNDLE --keys {keys}")


@app.command(name="install")
def install_bundle(
    bundle: Annotated[Path, typer.Argument(help="the file that came from the coordinator")],
    keys: Keys = DEFAULT_KEYS,
    ca_fingerprint: Annotated[
        str, typer.Option("--ca-fingerprint", help="as the coordinator read it out; compared")
    ] = "",
    new_study_key: Annotated[
        bool, typer.Option("--new-study-key", help="accept another study signing key")
    ] = False,
    site_toml: Annotated[
        Path | None,
        typer.Option("--site-toml", help="also write a site.toml to begin with, at this path"),
    ] = None,
    train: Annotated[
        list[Path] | None,
        typer.Option("--train", help="with --site-toml: a file of training rows; may be repeated"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the coordinator's bundle against this hospital's keys, and install it.

    The bundle brings this hospital's certificate and every root to trust, also the new one while
    the coordinator changes the CA; a running link takes both without a restart.

        fedward node install st-mary-bundle.json --site-toml site.toml --train rows.jsonl
    """
    if site_toml is not None and site_toml.exists():
        raise FedwardError(
            f"{site_toml}: there is a file already, and it was left as it is",
            hint="choose another path, or leave out --site-toml: a renewal needs no new settings",
        )
    if train and site_toml is None:
        raise FedwardError("--train belongs to --site-toml", hint="name the file to be written")
    done = install(bundle, keys, ca_fingerprint=ca_fingerprint, new_study_key=new_study_key)
    if site_toml is not None:
        write_atomic(site_toml, site_settings(done, train or []).encode(), mode=0o600)
    if as_json:
        _print_json(_facts(done))
        return
    word = "renewed" if done.renewed else "installed"
    out.print(f"{done.site}: {word}, valid until {done.not_after:%Y-%m-%d %H:%M} UTC")
    if not ca_fingerprint:
        out.print(
            "Compare with the coordinator by telephone before you go on; the CA's fingerprint is "
            f"[bold]{done.ca_fingerprint}[/]"
        )
    if site_toml is not None:
        out.print(f"Settings: {site_toml}  (check them with `fedward doctor --site {site_toml}`)")


def site_settings(done: Installed, train: list[Path]) -> str:
    """A `site.toml` for an installed bundle; the hospital adds what is its own."""
    paths = done.paths
    tree: dict[str, Any] = {
        "name": done.site,
        "aggregator": {
            "address": done.aggregator,
            "ca_certificate": str(paths.ca.resolve()),
            "signing_key": str(paths.study_public.resolve()),
            # The pair: key and certificate in one file, which a renewal replaces in one step.
            "client_certificate": str(paths.client.pair.resolve()),
        },
        "link": {"node_key": str(paths.node_key.resolve())},
        "data": {"train": [str(file.resolve()) for file in train] or ["rows.jsonl"]},
        "trainer": {"signing_key": str(paths.signing_key.resolve())},
    }
    return (
        f"# {done.site}: written by `fedward node install`. Set data.train to your own rows;\n"
        "# `fedward doctor --site` on this file checks the rest. No study can change it.\n\n"
        + tomli_w.dumps(tree)
    )


def _facts(done: Installed) -> dict[str, Any]:
    return {
        "site": done.site,
        "renewed": done.renewed,
        "not_after": done.not_after.isoformat(),
        "ca_fingerprint": done.ca_fingerprint,
        "aggregator": done.aggregator,
        "control_plane": done.control_plane,
    }


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))
