"""Splits an enrolled site's folder between its two containers (compose.hospital.yaml).

    python -m fedward_compose.hospital

    /site           what `fedward node enrol` and `install` made, and site.toml       read-only
    /out/link       site.toml, node key, client certificate: the half with network
    /out/trainer    site.toml, signing key: the half with data

Neither container can read the other's key. Run it again (`docker compose up init`) after a renewal;
the link takes a new certificate over by itself.
"""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from protocol.errors import FedwardError, SettingsError
from protocol.files import write_atomic
from protocol.settings import parse
from protocol.site import SiteSettings

BOTH = ("ca.crt", "study-signing.pub")
LINK = ("node.key", "client.pem")
TRAINER = ("signing.key",)


def settings(source: Path) -> dict[str, Any]:
    """The site's own settings, with the paths that hold inside the containers.

    Raises:
        SettingsError: it cannot be read or is wrong.
    """
    file = source / "site.toml"
    try:
        tree = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: cannot be read: {error}") from error
    aggregator = dict(tree.get("aggregator", {}))
    aggregator.pop("client_key", None)
    tree["state"] = "/state"
    tree["aggregator"] = aggregator | {
        "ca_certificate": "ca.crt",
        "signing_key": "study-signing.pub",
        "client_certificate": "client.pem",
    }
    tree["link"] = dict(tree.get("link", {})) | {"node_key": "node.key"}
    tree["trainer"] = dict(tree.get("trainer", {})) | {
        "socket": "/run/fedward/trainer.sock",
        "signing_key": "signing.key",
    }
    tree["model"] = {"path": "/model"} | tree.get("model", {})  # where the base is mounted
    parse(tree, SiteSettings, source=str(file))
    return tree


def split(source: Path, out: Path) -> None:
    """Write both folders.

    Raises:
        SettingsError: a file is missing.
        OSError: a volume cannot be written.
    """
    text = tomli_w.dumps(settings(source)).encode()
    for name, files in (("link", LINK), ("trainer", TRAINER)):
        for file in (*BOTH, *files):
            try:
                data = (source / file).read_bytes()
            except OSError as error:
                raise SettingsError(
                    f"{source / file}: cannot be read: {error.strerror}",
                    hint="enrol this site first, and let user 10001 read the folder",
                ) from error
            write_atomic(out / name / file, data, mode=0o644 if file in BOTH else 0o600)
        write_atomic(out / name / "site.toml", text)


def main() -> int:
    """Split; errors are sentences."""
    try:
        split(
            Path(os.environ.get("FEDWARD_SITE", "/site")),
            Path(os.environ.get("FEDWARD_OUT", "/out")),
        )
    except FedwardError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
