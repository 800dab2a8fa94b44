"""The images' locked sets are what pyproject.toml asks for, in the versions of constraints.txt."""

import re
from importlib.metadata import requires

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from stack import ROOT

LOCKS = ROOT / "requirements"
INSTALLERS = {"setuptools", "uv"}  # a freeze leaves them out, and so do the images or our imports
# What images run, whatever runs this test.
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.9"}


@pytest.mark.parametrize(
    ("lock", "extras", "elsewhere"),
    [
        ("cli", "", set()),
        ("flower", "flower", set()),
        ("control-plane", "dashboard postgres", set()),
        ("trainer-cpu", "trainer", {"torch"}),  # locked by itself, for it has its own index
    ],
)
def test_a_lock_holds_what_its_part_needs_and_no_more(
    lock: str, extras: str, elsewhere: set[str]
) -> None:
    assert set(_locked(lock)) == _needed(extras) - elsewhere, "run requirements/lock.sh"


def test_the_gpu_set_is_the_cpu_set_with_pytorchs_libraries() -> None:
    cpu, cuda = _locked("trainer-cpu"), _locked("trainer-cuda")
    assert cuda | cpu == cuda
    more = set(cuda) - set(cpu)
    assert "torch" in more
    assert all(re.match(r"torch|triton|nvidia-|cuda-", name) for name in more), more


@pytest.mark.parametrize("lock", ["cli", "flower", "control-plane", "trainer-cpu"])
def test_locked_versions_are_those_that_are_tested(lock: str) -> None:
    tested = _pins((ROOT / "constraints.txt").read_text())
    different = {
        name: (version, tested.get(name))
        for name, version in _locked(lock).items()
        if name not in INSTALLERS and tested.get(name) != version
    }
    assert not different


def test_pytorchs_cpu_build_is_the_version_that_is_tested() -> None:
    tested = re.search(r'"torch==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert tested
    assert _locked("trainer-cpu-torch") == {"torch": f"{tested[1]}+cpu"}
    assert _locked("trainer-cuda")["torch"] == tested[1]


def _locked(name: str) -> dict[str, str]:
    return _pins((LOCKS / f"{name}.txt").read_text())


def _pins(text: str) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==([^\s\\;]+)", text, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def _needed(wanted: str) -> set[str]:
    """Names of all that a part needs, followed through what is installed here."""
    found: set[str] = set()
    todo = [("fedward", frozenset(wanted.split() or [""]))]
    seen = set(todo)
    while todo:
        package, extras = todo.pop()
        for line in requires(package) or []:
            requirement = Requirement(line)
            if not _applies(requirement, extras):
                continue
            name = canonicalize_name(requirement.name)
            found.add(name)
            step = (name, frozenset(requirement.extras or {""}))
            if step not in seen:
                seen.add(step)
                todo.append(step)
    return found


def _applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    if requirement.marker is None:
        return True
    here = {**default_environment(), **PYTHON}
    return any(requirement.marker.evaluate({**here, "extra": extra}) for extra in extras)
