"""checkov's Kubernetes checks: clean, but for the exceptions argued in helm/checkov.yaml."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .chart import PROFILES, ROOT, needs_helm, render_text

CHECKOV = os.environ.get("CHECKOV") or shutil.which("checkov") or ""
pytestmark = [
    needs_helm,
    pytest.mark.skipif(not CHECKOV, reason="no checkov on PATH, and CHECKOV names none"),
]


def test_checkov_is_clean(tmp_path: Path) -> None:
    """Every profile in one run; the exceptions are few, and each has its reason."""
    for values in PROFILES:
        (tmp_path / f"{values}.yaml").write_text(render_text(values))
    command = [CHECKOV, "--config-file", str(ROOT / "helm" / "checkov.yaml"), "-d", str(tmp_path)]
    command += ["--output", "json", "--skip-download"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    failed = [
        f"{check['check_id']} {check['check_name']}: {check['file_path']} {check['resource']}"
        for check in report["results"]["failed_checks"]
    ]
    assert failed == []
    assert report["summary"]["passed"] > 2000
