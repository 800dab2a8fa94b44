"""Values: each is described, has a default and is used; what is made from them is up to date."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from .chart import CHART, HELM, ROOT, needs_helm

sys.path.insert(0, str(ROOT / "helm" / "tools"))
import generate

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = generate.load()
DESCRIBED = dict(generate.keys(SCHEMA))
# Objects whose keys are the user's own.
OPEN = {where for where, node in DESCRIBED.items() if node.get("type") == "object"} - {
    where for where, node in DESCRIBED.items() if "properties" in node
}
# Optional: present only in a values file that needs them.
WITHOUT_DEFAULT = re.compile(
    r"(minAvailable|ephemeral-storage|enrol\.NAME.*|hospital\.data\.columns\..*"
    r"|hospital\.limits\..*)$"
)


def leaves(node: Any, path: str = "") -> Iterator[str]:
    for name, inner in node.items():
        where = f"{path}.{name}" if path else name
        yield where
        if isinstance(inner, dict) and where not in OPEN:
            yield from leaves(inner, where)


def test_every_value_is_described() -> None:
    """A key of values.yaml that the schema does not know is refused by helm, and by this."""
    assert set(leaves(VALUES)) <= set(DESCRIBED)


def test_every_description_has_a_default() -> None:
    """A key that can be given stands in values.yaml, where people look for it."""
    missing = set(DESCRIBED) - set(leaves(VALUES))
    assert {where for where in missing if not WITHOUT_DEFAULT.search(where)} == set()


def test_every_description_is_a_sentence() -> None:
    """It begins with a capital (or a name) and ends with a full stop."""
    for where, node in DESCRIBED.items():
        text = node.get("description", "")
        assert text.endswith("."), f"{where}: {text!r}"
        assert len(text.split()) >= 2, where


def test_every_group_opens_with_a_paragraph() -> None:
    """Each top-level key of values.yaml has a comment right above it."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"[a-zA-Z]", line):
            assert lines[number - 1].startswith("#"), line


def test_every_value_is_used() -> None:
    """Each key's own name stands in a template; a value that nothing reads is a false promise."""
    templates = "".join(p.read_text() for p in CHART.glob("templates/**/*") if p.is_file())
    templates += (CHART / "files" / "provide.py").read_text()
    # Handed on whole, with the names that Kubernetes gives them, or looked up in a loop.
    whole = re.compile(
        r"\.(requests|limits|cpu|memory|ephemeral-storage)$|\.(issuerRef|columns|limits)\.[^.]+$"
        r"|^image\.[^.]+$"
    )
    for where in DESCRIBED:
        name = where.rpartition(".")[2]
        if not whole.search(where):
            assert re.search(rf"\b{name}\b", templates), where


def test_what_is_made_is_up_to_date() -> None:
    """values.schema.json, the reference page and the copies are what their sources say."""
    for path, text in generate.outputs().items():
        assert path.read_text() == text, f"{path}: run `python helm/tools/generate.py`"


def test_objects_are_closed() -> None:
    """No object with described keys lets another key through."""

    def walk(node: Any) -> Iterator[Any]:
        if isinstance(node, dict):
            yield node
            for inner in node.values():
                yield from walk(inner)

    for node in walk(generate.closed(SCHEMA)):
        if isinstance(node.get("properties"), dict) and "type" in node:
            assert node["additionalProperties"] is False


def test_the_reference_names_every_key() -> None:
    """docs/kubernetes-values.md has a row for each."""
    page = (ROOT / "docs" / "kubernetes-values.md").read_text()
    for where in DESCRIBED:
        if "." in where:
            assert f"`{where}`" in page or f"**{where}**" in page, where


@needs_helm
@pytest.mark.parametrize("values", ["defaults", "everything", "hospital", "aggregator", "gpu"])
def test_lint_strict(values: str) -> None:
    """`helm lint --strict` has no word to say about any profile."""
    command = [HELM, "lint", "--strict", str(CHART)]
    if values != "defaults":
        command += ["--values", str(ROOT / "tests" / "helm" / "values" / f"{values}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout
