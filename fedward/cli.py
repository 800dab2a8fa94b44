"""The command line: `fedward --help`.

Errors a person can cause are one sentence and a next step on standard error, with an exit code;
tracebacks are for our own mistakes.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console

from certs.errors import CertError
from hospital_node.trainer.data import load_rows
from protocol.errors import FedwardError
from protocol.states import StudyState
from protocol.study import StudySettings, load_study
from server.report import report as build_report
from server.report import write_report

from . import cli_certs, cli_node, launcher, summary, watch
from . import demo as demo_module
from .control import Address, ControlPlane
from .coordinator import certificate_checks
from .federation import Federation, FederationSettings, Layout, existing, load_federation, prepare

READY_SECONDS = 60.0
DEFAULT_FOLDER = Path(".fedward")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Hospitals fine-tune one language model together while every patient record stays where "
    "it is. Start with [bold]fedward demo[/]: three hospitals on this machine, no download.",
)
app.add_typer(cli_certs.app, name="certs")
app.add_typer(cli_node.app, name="node")
out = Console()
err = Console(stderr=True)

Folder = Annotated[
    Path, typer.Option("--folder", help="the federation's folder", envvar="FEDWARD_FOLDER")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for a program to read")]
StudyName = Annotated[str, typer.Argument(help="a study's id, or the start of it; see `status`")]


@app.command()
def up(
    settings: Annotated[
        Path | None,
        typer.Argument(help="federation.toml; else the folder's own, or the demo's hospitals"),
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Start a federation on this machine: aggregator, control plane and every hospital.

    Keys, certificates and settings files are made in the folder the first time. TLS and node
    authentication are on. It runs until `fedward down`.

    A federation.toml names the hospitals and their files:

        [sites.st-mary.data]
        train = ["st-mary/notes.jsonl"]
        columns = { instruction = "question", output = "answer" }
    """
    federation = _start(folder, load_federation(settings) if settings else None)
    if as_json:
        _print_json({"dashboard": federation.dashboard, "sites": list(federation.sites)})
        return
    _say_addresses(federation)
    out.print("Next: [bold]fedward run STUDY.toml[/], or [bold]fedward status[/]")


@app.command()
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop the federation; a study that was running goes on at the next `up`."""
    if launcher.stop_running(Layout(folder.resolve())):
        out.print("stopped")
    else:
        out.print(f"no federation is running in {folder}")


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="study.toml: model, adapter, training, rounds")],
    folder: Folder = DEFAULT_FOLDER,
    detach: Annotated[bool, typer.Option("--detach", help="submit and return at once")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a study and watch it; exit 0 only if it finished.

    The base model is a directory in Hugging Face layout or a hub id:

        name = "triage-notes"
        [model]
        base = "/models/llama-3-8b"
        [training]
        steps = 20
        learning_rate = 2e-4
        [rounds]
        count = 10
    """
    settings = load_study(study)
    plane = _plane(_running(folder))
    study_id = plane.submit(_with_absolute_base(settings, study))
    if detach:
        if as_json:
            _print_json({"study_id": study_id})
        else:
            out.print(f"submitted {study_id}; watch it with `fedward status {study_id}`")
        return
    try:
        _watch(plane, study_id, as_json, _running(folder))
    except KeyboardInterrupt:
        err.print(f"\n{study_id} goes on; `fedward stop {study_id}` stops it")
        raise


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(help="a study's id, or the start of it")] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Show the federation's hospitals and studies, or one study."""
    plane = _plane(_running(folder))
    if study is not None:
        detail = plane.study(_find(plane, study))
        if as_json:
            _print_json(detail.model_dump(mode="json"))
        else:
            out.print(watch.render(detail, plane.nodes()))
        return
    studies, nodes = plane.studies(), plane.nodes()
    if as_json:
        _print_json(
            {
                "studies": [row.model_dump(mode="json") for row in studies],
                "nodes": [row.model_dump(mode="json") for row in nodes],
            }
        )
        return
    out.print(summary.nodes_table(nodes))
    out.print(summary.studies_table(studies))


@app.command()
def logs(
    component: Annotated[
        str | None, typer.Argument(help="control-plane, aggregator, SITE-trainer, SITE-link")
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    lines: Annotated[int, typer.Option("--lines", "-n", help="lines from the end", min=1)] = 50,
) -> None:
    """Print the end of a component's log; without a name, say which there are."""
    layout = Layout(folder.resolve())
    files = {file.stem: file for file in sorted(layout.logs.glob("*.log"))}
    if not files:
        raise FedwardError(f"{layout.logs}: no logs yet", hint="`fedward up` starts a federation")
    if component is None:
        out.print("\n".join(files))
        return
    if component not in files:
        raise FedwardError(f"{component!r}: no such component; there are {', '.join(files)}")
    text = files[component].read_text(errors="replace").splitlines()[-lines:]
    sys.stdout.write("\n".join(text) + "\n")


@app.command()
def stop(study: StudyName, folder: Folder = DEFAULT_FOLDER) -> None:
    """Stop a study; its last checkpoint stays."""
    plane = _plane(_running(folder))
    study_id = _find(plane, study)
    plane.stop(study_id)
    out.print(f"{study_id}: asked to stop")


@app.command()
def export(
    study: StudyName,
    target: Annotated[Path, typer.Option("--out", help="a folder that does not exist yet")],
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Copy a finished study's adapter (PEFT's own layout) and report.json to a folder.

    Load it with stock peft: PeftModel.from_pretrained(base_model, FOLDER)
    """
    federation = _prepared(folder)
    from .export import export_study

    written = export_study(federation.layout, study, target)
    out.print(f"wrote {', '.join(path.name for path in written)} to {target}")


@app.command()
def doctor(
    site: Annotated[
        Path | None, typer.Option("--site", help="check one hospital's site.toml instead")
    ] = None,
    folder: Folder = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Check settings, data, model, keys, disk and clock, and say what to mend.

    Exit code 0 if everything is in order, 1 if a check failed.
    """
    from hospital_node.doctor import run_checks
    from protocol.site import load_site

    if site is not None:
        files = [site]
    else:
        federation = _prepared(folder)
        files = [federation.layout.site(name) / "site.toml" for name in federation.sites]
    sites = [load_site(file) for file in files]
    checks = [(one.name, check) for one in sites for check in run_checks(one)]
    if site is None:
        checks += certificate_checks(folder)
    if as_json:
        _print_json(
            [
                {"site": name, "name": c.name, "ok": c.ok, "sentence": c.sentence, "hint": c.hint}
                for name, c in checks
            ]
        )
    else:
        out.print(summary.checks_table(checks))
    if not all(check.ok for _, check in checks):
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Folder = DEFAULT_FOLDER,
    keep: Annotated[bool, typer.Option("--keep", help="leave the federation running")] = False,
) -> None:
    """Run three hospitals on this machine and show what federation brings them.

    TLS and node authentication are on, the base model is 4-bit, nothing is downloaded. Ends with a
    table: held-out accuracy of the base model, of each hospital alone, and of the federation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    federation = _start(folder, demo_module.demo_federation(folder))
    path, settings = demo_module.write_demo_study(folder)
    _say_addresses(federation)
    try:
        plane = _plane(federation)
        _watch(plane, plane.submit(settings), False, federation)
        out.print(f"The study is {path}: change it and `fedward run` it again.")
    finally:
        if not keep:
            launcher.stop_running(federation.layout)
    if keep:
        out.print("The federation is still running: [bold]fedward down[/] stops it.")
    else:
        out.print(
            "Stopped. [bold]make up[/] starts it again with its history; [bold]make down[/] stops."
        )


def _start(folder: Path, settings: FederationSettings | None) -> Federation:
    """Bring a federation up in `folder` and wait until its control plane answers."""
    layout = Layout(folder.resolve())
    if (pid := launcher.running(layout)) is not None:
        raise FedwardError(
            f"{folder}: a federation is running there already (pid {pid})",
            hint="`fedward status` shows it, `fedward down` stops it",
        )
    folder.mkdir(parents=True, exist_ok=True)
    if settings is None:
        kept = layout.settings_file
        settings = load_federation(kept) if kept.exists() else demo_module.demo_federation(folder)
    for site in settings.sites.values():
        load_rows(site.data)  # a sentence here beats a trainer that starts again and again
    federation = prepare(folder, settings)
    launcher.start_in_background(federation)
    try:
        _plane(federation).wait_until_ready(READY_SECONDS)
    except BaseException:
        launcher.stop_running(layout)
        raise
    return federation


def _watch(plane: ControlPlane, study_id: str, as_json: bool, federation: Federation) -> None:
    study = watch.follow(plane, study_id, err if as_json else out)
    events = plane.events(study_id)
    file, report = write_report(federation.layout.folder, events), build_report(events)
    if as_json:
        _print_json(report)
    else:
        out.print(watch.describe_end(study))
        out.print(summary.report_tables(report))
        out.print(f"Report: {file}")
    if study.state is not StudyState.FINISHED:
        raise typer.Exit(1)


def _with_absolute_base(settings: StudySettings, file: Path) -> StudySettings:
    """A base model that is a directory, from the study file or absolute, by its full path."""
    base = settings.model.base
    folder = (file.resolve().parent / Path(base).expanduser()).resolve()
    if not folder.is_dir():
        if base.startswith(("/", ".", "~")):
            raise FedwardError(
                f"{file}: model.base = {base!r}: no such directory",
                hint="name a directory in Hugging Face layout, or a hub id such as owner/model",
            )
        return settings
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise FedwardError(
            f"{file}: model.base = {base!r}: no config.json with *.safetensors in that directory",
            hint="save_pretrained(folder) of transformers writes both",
        )
    model = settings.model.model_copy(update={"base": str(folder)})
    return settings.model_copy(update={"model": model})


def _prepared(folder: Path) -> Federation:
    federation = existing(folder)
    if federation is None:
        raise FedwardError(
            f"{folder}: no federation here", hint="`fedward up` makes and starts one"
        )
    return federation


def _running(folder: Path) -> Federation:
    federation = _prepared(folder)
    if launcher.running(federation.layout) is None:
        raise FedwardError(
            f"{folder}: the federation is not running", hint="`fedward up` starts it"
        )
    return federation


def _plane(federation: Federation) -> ControlPlane:
    return ControlPlane(Address.of(federation))


def _find(plane: ControlPlane, wanted: str) -> str:
    known = [study.study_id for study in plane.studies()]
    matches = [study_id for study_id in known if study_id.startswith(wanted)]
    if len(matches) == 1 or wanted in matches:
        return wanted if wanted in matches else matches[0]
    if not matches:
        raise FedwardError(f"{wanted!r}: no such study; there are {', '.join(known) or 'none'}")
    raise FedwardError(f"{wanted!r} could be {', '.join(matches)}")


def _say_addresses(federation: Federation) -> None:
    token = federation.layout.tokens / "coordinator.token"
    out.print(f"Dashboard: [bold]{federation.dashboard}[/]  (log in with the token in {token})")


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def main() -> None:
    """Entry point; turns our errors into sentences."""
    sys.exit(_guarded(lambda: app(standalone_mode=False)))


def _guarded(command: Callable[[], Any]) -> int:
    try:
        code = command()
    except (FedwardError, CertError) as error:
        err.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        if error.hint:
            err.print(f"[dim]hint:[/] {error.hint}", highlight=False, soft_wrap=True)
        return error.exit_code
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return code if isinstance(code, int) else 0
