"""Takes a finished study's adapter out of the aggregator's folder."""

import shutil
from pathlib import Path

from protocol.errors import FedwardError

from .federation import Layout

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
REPORT_FILE = "report.json"


def study_folder(layout: Layout, study: str) -> Path:
    """The aggregator's folder of one study, by its id or the start of it.

    Raises:
        FedwardError: none matches, or several do.
    """
    root = layout.aggregator / "state" / "studies"
    matches = sorted(path for path in root.glob(f"{study}*") if path.is_dir())
    exact = [path for path in matches if path.name == study]
    if exact or len(matches) == 1:
        return (exact or matches)[0]
    if not matches:
        raise FedwardError(f"{study!r}: no such study in {root}")
    raise FedwardError(f"{study!r} could be {', '.join(path.name for path in matches)}")


def export_study(layout: Layout, study: str, target: Path) -> list[Path]:
    """Copy adapter and report to `target`, which appears whole or not at all.

    Raises:
        FedwardError: no such study, it has no adapter yet, or `target` exists.
    """
    source = study_folder(layout, study)
    adapter = source / "adapter"
    missing = [name for name in ADAPTER_FILES if not (adapter / name).is_file()]
    if missing:
        raise FedwardError(
            f"{source.name} has no adapter yet ({', '.join(missing)} is missing)",
            hint=f"`fedward status {source.name}` says how far it is",
        )
    if target.exists():
        raise FedwardError(f"{target}: exists already; choose a new folder")
    files = [adapter / name for name in ADAPTER_FILES]
    if (source / REPORT_FILE).is_file():
        files.append(source / REPORT_FILE)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for file in files:
            shutil.copy2(file, partial / file.name)
        partial.replace(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise FedwardError(f"{target}: cannot write: {error.strerror or error}") from error
    return [target / file.name for file in files]
