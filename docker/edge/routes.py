"""Writes the edge's route tables from protocol/, the one place where routes are spelled.

    python docker/edge/routes.py            # writes fleet-routes.lst and site-routes.lst beside it

A test compares the committed tables with these.
"""

from pathlib import Path

from protocol.control import FLEET_PREFIX, SITE_PROGRESS
from protocol.flower import FLEET_ROUTES

HERE = Path(__file__).parent


def tables() -> dict[str, str]:
    """File name to content; one whole path a line."""
    fleet = "".join(f"{FLEET_PREFIX}{route}\n" for route in FLEET_ROUTES)
    return {"fleet-routes.lst": fleet, "site-routes.lst": f"{SITE_PROGRESS}\n"}


if __name__ == "__main__":
    for name, text in tables().items():
        (HERE / name).write_text(text)
