"""A real Prometheus with our rules, and a real Alertmanager that it tells (Debian's packages)."""

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from .service import free_port

PROMETHEUS = Path(__file__).parents[2] / "dashboard" / "prometheus"
RULES = PROMETHEUS / "rules" / "fedward.rules.yml"
NEEDED = ("prometheus", "prometheus-alertmanager")
HASTE = 20  # an alert that waits five minutes waits fifteen seconds here
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def missing() -> str:
    """Why there is no Prometheus or Alertmanager; "" when there are both."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed (Debian)" if absent else ""


def hasty(rules: str) -> str:
    """The rules with every `for` divided by HASTE; expressions and their windows stay."""

    def shorter(match: re.Match[str]) -> str:
        seconds = int(match[2]) * _UNITS[match[3]] / HASTE
        return f"{match[1]}{max(1, round(seconds))}s"

    return re.sub(r"(?m)^(\s+for: )(\d+)([smhd])$", shorter, rules)


class _Program:
    """A child process with an HTTP address on loopback."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)
        with (folder / f"{command[0]}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{self.port}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )

    def stop(self) -> None:
        """End it."""
        self.client.close()
        self.process.terminate()
        self.process.wait(timeout=20)


class Alertmanager(_Program):
    """Keeps every alert that has ever come, because one that is resolved vanishes there."""

    def __init__(self, folder: Path) -> None:
        settings = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
        for receiver in settings["receivers"]:  # nobody listens on the example's address
            for hook in receiver["webhook_configs"]:
                hook["url"] = f"http://127.0.0.1:{free_port()}/"
        (folder / "alertmanager.yml").write_text(yaml.safe_dump(settings))
        super().__init__(
            folder,
            [
                "prometheus-alertmanager",
                "--config.file=alertmanager.yml",
                "--storage.path=alertmanager",
                "--cluster.listen-address=",
            ],
        )
        self.seen: dict[str, list[dict[str, Any]]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def now(self) -> list[dict[str, Any]]:
        """The alerts that it has now, inhibited ones too."""
        found: list[dict[str, Any]] = self.client.get("/api/v2/alerts").json()
        return found

    def wait(self, *names: str, seconds: float = 120.0) -> None:
        """Wait until each of these has come at least once."""
        deadline = time.monotonic() + seconds
        while set(names) - set(self.seen):
            assert time.monotonic() < deadline, (
                f"never arrived: {sorted(set(names) - set(self.seen))}; "
                f"arrived: {sorted(self.seen)}"
            )
            time.sleep(0.3)

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join()
        super().stop()

    def _watch(self) -> None:
        with httpx.Client(base_url=self.client.base_url, timeout=20) as client:
            while not self._ended.wait(0.5):
                try:
                    found = client.get("/api/v2/alerts").json()
                except (httpx.HTTPError, ValueError):
                    continue
                for alert in found:
                    known = self.seen.setdefault(alert["labels"]["alertname"], [])
                    if alert["labels"] not in [one["labels"] for one in known]:
                        known.append(alert)


class Prometheus(_Program):
    """Scrapes one control plane every second, as prometheus.yml says."""

    def __init__(
        self, folder: Path, *, target: str, ca: Path, token: Path, alertmanager: Alertmanager
    ) -> None:
        settings: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        (folder / "hasty.rules.yml").write_text(hasty(RULES.read_text()))
        settings["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
        settings["global"]["external_labels"]["runbooks"] = f"https://{target}/runbooks"
        settings["rule_files"] = ["hasty.rules.yml"]
        (job,) = settings["scrape_configs"]
        job["authorization"]["credentials_file"] = str(token)
        job["tls_config"]["ca_file"] = str(ca)
        job["static_configs"] = [{"targets": [target]}]
        (manager,) = settings["alerting"]["alertmanagers"]
        manager["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager.port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        super().__init__(
            folder, ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query's series."""
        body = self.client.post("/api/v1/query", data={"query": expression}).json()
        assert body["status"] == "success", (expression, body)
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def lately(self, expression: str) -> list[dict[str, Any]]:
        """A query's series over the last half hour, as a panel draws them."""
        now = time.time()
        body = self.client.post(
            "/api/v1/query_range",
            data={"query": expression, "start": now - 1800, "end": now, "step": 5},
        ).json()
        assert body["status"] == "success", (expression, body)
        found: list[dict[str, Any]] = body["data"]["result"]
        return found

    def wait(self, expression: str, seconds: float = 60.0) -> list[dict[str, Any]]:
        """Wait until a query has data."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = self.query(expression)
            except httpx.TransportError:
                found = []
            if found:
                return found
            assert time.monotonic() < deadline, f"no data: {expression}"
            time.sleep(0.5)
