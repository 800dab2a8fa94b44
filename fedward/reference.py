"""Writes docs/settings.md: every key of study.toml and site.toml, as the models describe them.

python -m fedward.reference            # write it
python -m fedward.reference --check    # exit code 1 where it is out of date
"""

import argparse
import enum
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from protocol.site import SiteSettings
from protocol.study import StudySettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

_HEAD = """# Settings

Every key of the two files people write; made by `python -m fedward.reference`, so it is what the
code reads. A wrong key, value or combination is refused with a sentence that names it. How the
methods work and which to take: [training.md](training.md).
"""
_FILES: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("study.toml", "The coordinator's: what is asked of every hospital.", StudySettings),
    (
        "site.toml",
        "The hospital's own. It may narrow what a study asks and never widens it; paths are "
        "relative to the file.",
        SiteSettings,
    ),
)


def page() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD]
    for name, sentence, model in _FILES:
        parts.append(f"\n## {name}\n\n{sentence}\n")
        parts.extend(_tables(model, ""))
    return "".join(parts)


def _tables(model: type[BaseModel], path: str) -> Iterator[str]:
    """A table of the model's own keys, then one for each section in it."""
    sections = {key: _section(field.annotation) for key, field in model.model_fields.items()}
    plain = {key: field for key, field in model.model_fields.items() if sections[key] is None}
    if path:
        yield f"\n### [{path}]\n"
    if plain:
        yield "\n| key | value | unset | |\n|---|---|---|---|\n"
        for key, field in plain.items():
            words = (field.description or "").replace("|", "\\|")
            yield f"| `{key}` | {_kind(field)} | {_default(field)} | {words} |\n"
    for key, section in sections.items():
        if section is not None:
            yield from _tables(section, f"{path}.{key}" if path else key)


def _section(annotation: object) -> type[BaseModel] | None:
    for part in (annotation, *typing.get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _kind(field: FieldInfo) -> str:
    """What may stand there: words to choose from, or the type and its bounds."""
    bounds = []
    for rule in field.metadata:
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            limit = getattr(rule, name, None)
            if limit is not None:
                bounds.append(f"{sign} {limit:g}" if abs(limit) < 1e6 else f"{sign} {limit:.2g}")
    return " ".join([_name(field.annotation), *bounds])


def _name(annotation: object) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _name(args[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_name(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        return f"list of {_name(args[0])}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return ", ".join(f"`{one.value}`" for one in annotation)
    names = {int: "whole number", float: "number", str: "text", bool: "true, false", Path: "path"}
    return names.get(annotation, str(annotation)) if isinstance(annotation, type) else "text"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "**needed**"
    if value is None or value == ():
        return "-"
    if isinstance(value, tuple):
        return ", ".join(f"`{getattr(one, 'value', one)}`" for one in value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{getattr(value, 'value', value)}`"


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description="Writes docs/settings.md from the settings.")
    parser.add_argument("--check", action="store_true", help="exit code 1 where it is out of date")
    wanted = page()
    if parser.parse_args().check:
        same = PAGE.exists() and PAGE.read_text() == wanted
        if not same:
            print(f"{PAGE.name} is out of date: run python -m fedward.reference", file=sys.stderr)
        return 0 if same else 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
