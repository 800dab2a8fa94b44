"""Health of the aggregator and of the control plane, for HEALTHCHECK; the standard library alone.

    python -I health.py aggregator | control-plane

It asks over TLS as a client would, trusting the CA that the service's own settings name.
"""

import http.client
import os
import ssl
import sys
from pathlib import Path

PORTS = {"aggregator": (9092, "/health"), "control-plane": (9443, "/readyz")}
# Who has to be alive beside the listener: Flower's own /health is a constant.
CHILDREN = {"aggregator": ("server.superlink", "server.superexec"), "control-plane": ()}


def trouble(service: str) -> str:
    """A sentence for what is wrong; empty when nothing is."""
    port, path = PORTS[service]
    folder = Path(os.environ.get("FEDWARD_CONFIG", "/config"))
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=4)
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"port {port} does not answer: {error}"
    if status != 200:
        return f"{path} answers {status}"
    running = b"\n".join(_command_lines())
    missing = [name for name in CHILDREN[service] if name.encode() not in running]
    return f"{', '.join(missing)} is not running" if missing else ""


def _command_lines() -> list[bytes]:
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes())
        except OSError:  # it has just ended
            continue
    return lines


if __name__ == "__main__":
    found = trouble(sys.argv[1])
    print(found or "ok")
    sys.exit(1 if found else 0)
