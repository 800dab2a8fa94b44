"""The app bundle that Flower sends to every hospital: exactly these files, and no logic."""

import io
import zipfile

from server._flower import build_fab
from server.supervisor import APP_FOLDER


def test_bundle_holds_nothing_else(tmp_path_factory: object) -> None:
    """Built for real and listed: shims, their project file and Flower's own list."""
    with zipfile.ZipFile(io.BytesIO(build_fab(APP_FOLDER))) as bundle:
        assert sorted(bundle.namelist()) == [
            ".info/CONTENT",
            "fedward_app/__init__.py",
            "fedward_app/client_app.py",
            "fedward_app/server_app.py",
            "pyproject.toml",
        ]
        assert max(info.file_size for info in bundle.infolist()) < 2000


def test_stray_data_stays_out(tmp_path: object) -> None:
    """A data file that somebody leaves in the folder is not shipped."""
    import shutil
    from pathlib import Path

    copy = Path(str(tmp_path)) / "app"
    shutil.copytree(APP_FOLDER, copy)
    (copy / "data").mkdir()
    for name in ("data/patients.json", "fedward_app/patients.jsonl", "notes.md", "extra.py"):
        (copy / name).write_text("[]")
    with zipfile.ZipFile(io.BytesIO(build_fab(copy))) as bundle:
        assert not [
            n for n in bundle.namelist() if "patients" in n or n in {"notes.md", "extra.py"}
        ]
