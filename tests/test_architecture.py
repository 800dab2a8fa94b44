"""Folders are the architecture: who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ALLOWED: dict[str, set[str]] = {
    "protocol": set(),
    "certs": set(),
    "server": {"protocol"},
    "hospital_node": {"protocol"},
    "dashboard": {"protocol"},
    "fedward": {"protocol", "certs", "server", "hospital_node", "dashboard"},
}

# The link and everything it imports must not be able to open a model or a data file, and the
# aggregator and control plane images have no torch.
WITHOUT_TORCH = ("protocol", "certs", "server", "dashboard", "hospital_node/link")
TORCH = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "pyarrow", "datasets"}


def imported(file: Path) -> set[str]:
    """The top-level packages that a source file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"{folder} has no source files: the table is out of date"
    return files


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_what_the_design_allows(package: str) -> None:
    """`server` and `hospital_node` never import each other, and `protocol` imports none of ours."""
    for file in sources(package):
        if "flower_app" in file.parts:  # the bundle's shims name both sides, one in each process
            continue
        ours = imported(file) & (ALLOWED.keys() - {package})
        assert ours <= ALLOWED[package], f"{file.relative_to(ROOT)} imports {ours}"


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_what_has_the_network_has_no_torch(folder: str) -> None:
    """No source file of the link, the aggregator or the control plane imports a model library."""
    for file in sources(folder):
        found = imported(file) & TORCH
        assert not found, f"{file.relative_to(ROOT)} imports {found}"


def test_every_source_file_is_in_a_known_package() -> None:
    """A new top-level package has to be entered in the table above."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests", "bench"} == set(ALLOWED)


def test_modules_stay_short() -> None:
    """No module of ours is longer than about 500 lines."""
    long = {
        str(file.relative_to(ROOT)): count
        for package in ALLOWED
        for file in sources(package)
        if (count := file.read_text().count("\n")) > 520
    }
    assert not long
