"""The page for the security officer names every field that can leave a hospital."""

import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from protocol.messages import Progress, Reply

PAGE = Path(__file__).resolve().parents[2] / "docs" / "what-leaves.md"


def fields(model: type[BaseModel]) -> set[str]:
    """The names of a message's fields, and of the messages in it."""
    found = set()
    for name, field in model.model_fields.items():
        found.add(name)
        for inner in inside(field.annotation):
            found |= fields(inner)
    return found


def inside(annotation: object) -> list[type[BaseModel]]:
    """The models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in inside(part)]


@pytest.mark.parametrize("message", [Reply, Progress])
def test_every_field_is_on_the_page(message: type[BaseModel]) -> None:
    """A field that is added to a message has to be explained to hospitals."""
    named = set(re.findall(r"`([a-z_0-9]+)`", PAGE.read_text()))
    assert fields(message) - named == set()
