"""Prints the sizes of the images, as docs/deployment.md has them.

    python docker/measure.py                # images of FEDWARD_VERSION (0.1.0)

Times of a start are printed by `pytest -s tests/docker`, which makes one.
"""

import os
import subprocess

IMAGES = ("edge", "cli", "control-plane", "link", "aggregator", "trainer")
BASE = "python:3.11-slim-bookworm"


def size(image: str) -> float:
    """What an image takes on disk, in bytes, its shared layers included."""
    command = ["docker", "image", "inspect", "-f", "{{.Size}}", image]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print a table."""
    version = os.environ.get("FEDWARD_VERSION", "0.1.0")
    print("| image | size | beyond the Python base |\n|---|---|---|")
    for name in IMAGES:
        whole = size(f"fedward/{name}:{version}")
        print(f"| {name} | {whole / 1e6:.0f} MB | {(whole - size(BASE)) / 1e6:.0f} MB |")


if __name__ == "__main__":
    main()
