"""compose.hospital.yaml: hospital B leaves the demo's topology and comes back as an institution."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import ENVIRONMENT, PROJECT, ROOT, Stack, compose, docker

INSTITUTION = "fedward-test-hospital"


@pytest.fixture
def institution(stack: Stack, tmp_path: Path) -> Iterator[list[str]]:
    """The compose command line of the hospital; its own site folder, rows and model."""
    image = stack.container("renewals")["Image"]
    code = "import shutil; shutil.copytree('/pki/certs/sites/hospital-b', '/out/site')"
    copies = {
        "site": (f"{PROJECT}_pki:/pki:ro", code),
        "data": (f"{PROJECT}_hospital-b-data:/pki:ro", code.replace(
            "/pki/certs/sites/hospital-b", "/pki").replace("/out/site", "/out/data")),
        "model": (f"{PROJECT}_model:/pki:ro", code.replace(
            "/pki/certs/sites/hospital-b", "/pki").replace("/out/site", "/out/model")),
    }  # fmt: skip
    tmp_path.chmod(0o777)
    for volume, program in copies.values():
        docker("run", "--rm", "-v", volume, "-v", f"{tmp_path}:/out", "--entrypoint", "python",
               image, "-c", program)  # fmt: skip
    settings = compose("exec", "-T", "hospital-b-link", "cat", "/config/site.toml")
    (tmp_path / "site" / "site.toml").write_text(settings)
    override = tmp_path / "network.yaml"
    override.write_text(
        "services: {link: {networks: [wan]}}\n"
        f"networks: {{wan: {{external: true, name: {PROJECT}_hospital-b}}}}\n"
    )
    ENVIRONMENT.update(
        {f"HOSPITAL_{name.upper()}": str(tmp_path / name) for name in copies}, HOSPITAL_CPUS="1"
    )
    command = ["compose", "-p", INSTITUTION, "-f", str(ROOT / "compose.hospital.yaml")]
    command += ["-f", str(override)]
    compose("stop", "hospital-b-link", "hospital-b-trainer")
    try:
        yield command
    finally:
        docker(*command, "down", "--volumes", check=False)
        compose("start", "hospital-b-link", "hospital-b-trainer")
        stack.wait_healthy(300)


def test_an_institution_runs_from_its_own_folders_and_takes_part(
    stack: Stack, institution: list[str]
) -> None:
    docker(*institution, "up", "--detach", timeout=300)

    def health(service: str) -> str:
        name = docker(*institution, "ps", "-q", service).strip()
        found = json.loads(docker("inspect", name))[0]["State"]
        return str(found["Health"]["Status"])

    stack.wait(lambda: health("link") == "healthy", 200, "the institution's link")
    stack.wait(lambda: health("trainer") == "healthy", 200, "the institution's trainer")
    study = stack.submit("institution", 3, minimum_sites=2)
    finished = stack.wait_finished(study, 900)
    sites = {site["site"]: site for site in finished["sites"]}
    assert sites["hospital-b"]["rounds_ok"] == 3
