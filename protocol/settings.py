"""Reading a TOML settings file into a pydantic model, with errors a person can act on."""

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import SettingsError

Model = TypeVar("Model", bound=BaseModel)

MAX_SETTINGS_BYTES = 1 << 20


class Section(BaseModel):
    """A table of a settings file: frozen, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


def load_toml(path: Path, model: type[Model]) -> Model:
    """Read `path` and check it against `model`.

    Raises:
        SettingsError: the file is missing, unreadable, not TOML, or a key is wrong; the message
            names the file, the key, its value and what would be right.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path}: cannot read the settings file: {error.strerror or error}"
        ) from error
    if len(raw) > MAX_SETTINGS_BYTES:
        raise SettingsError(f"{path}: {len(raw)} bytes is too large; settings stay under 1 MiB")
    try:
        tree = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    return parse(tree, model, source=str(path))


def parse(tree: dict[str, Any], model: type[Model], *, source: str) -> Model:
    """Check `tree` against `model`; errors speak in the words of the file, not of the code."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_sentence(item, model) for item in error.errors()]
        raise SettingsError(f"{source}: " + "; ".join(lines)) from error


def _sentence(item: Any, model: type[BaseModel]) -> str:
    keys = [part for part in item["loc"] if part != "function-after"]
    key = ".".join(str(part) for part in keys)
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        return f"{key}: unknown key{_did_you_mean(keys, model)}"
    if kind == "missing":
        return f"{key}: missing{_meaning(keys, model)}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if isinstance(value, dict):
        return f"{key}: {message}" if key else message
    return f"{key} = {value!r}: {message}{_meaning(keys, model)}"


def _owner(keys: list[Any], model: type[BaseModel]) -> type[BaseModel] | None:
    """The model that holds the last key of a dotted path, or None where the path leaves models."""
    for part in keys[:-1]:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        model = inner
    return model


def _did_you_mean(keys: list[Any], model: type[BaseModel]) -> str:
    owner = _owner(keys, model)
    if owner is None:
        return ""
    known = sorted(owner.model_fields)
    close = difflib.get_close_matches(str(keys[-1]), known, n=1)
    return f", did you mean {close[0]!r}?" if close else f", known keys are {', '.join(known)}"


def _meaning(keys: list[Any], model: type[BaseModel]) -> str:
    owner = _owner(keys, model)
    field = owner.model_fields.get(str(keys[-1])) if owner is not None and keys else None
    return f" ({field.description})" if field is not None and field.description else ""
