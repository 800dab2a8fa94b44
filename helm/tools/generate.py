"""Everything in the chart that is made from something else:

python helm/tools/generate.py            # write it
python helm/tools/generate.py --check    # say what is out of date; exit code 1

values.schema.yaml ----------> values.schema.json      closed: no key that is not described
                   \\--------> docs/kubernetes-values.md, with the defaults of values.yaml
dashboard/grafana/dashboards -> files/dashboards        (a chart holds its own files only)
dashboard/prometheus/rules ---> files/rules
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "fedward"
PROSE = CHART / "values.schema.yaml"
COPIED = (
    (ROOT / "dashboard" / "grafana" / "dashboards", "*.json", CHART / "files" / "dashboards"),
    (ROOT / "dashboard" / "prometheus" / "rules", "*.rules.yml", CHART / "files" / "rules"),
)
Schema = dict[str, Any]


def load() -> Schema:
    """The prose schema with its references filled in."""
    prose: Schema = yaml.safe_load(PROSE.read_text())
    filled: Schema = _filled(prose, prose.pop("definitions"))
    return filled


def _filled(node: Any, definitions: Schema) -> Any:
    if isinstance(node, list):
        return [_filled(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        own = {key: value for key, value in node.items() if key not in {"$ref", "without"}}
        whole = _filled(definitions[node["$ref"]], definitions) | own
        if node.get("without"):
            kept = whole["properties"].items()
            whole["properties"] = {k: v for k, v in kept if k not in node["without"]}
        return whole
    return {key: _filled(value, definitions) for key, value in node.items()}


def closed(node: Schema) -> Schema:
    """The schema with every described object closed.

    `propertyNames` repeats what `additionalProperties` says: Helm's message for it lists the names
    that are right, the other names only the wrong one.
    """
    result = dict(node)
    if "properties" in node:
        result["properties"] = {key: closed(value) for key, value in node["properties"].items()}
        result["additionalProperties"] = False
        result["propertyNames"] = {"enum": sorted(node["properties"])}
    elif isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(node["additionalProperties"])
    if isinstance(node.get("items"), dict):
        result["items"] = closed(node["items"])
    return result


def json_schema() -> str:
    """values.schema.json."""
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the fedward chart; made by helm/tools/generate.py",
    }
    # Helm hands global values to every chart, asked or not.
    schema = closed(load())
    schema["properties"]["global"] = {"type": "object"}
    schema["propertyNames"]["enum"].append("global")
    return json.dumps(head | schema, indent=1) + "\n"


def keys(node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every key that may be given, by its dotted path; those that hold others come first."""
    for name, inner in node.get("properties", {}).items():
        where = f"{path}.{name}" if path else name
        yield where, inner
        yield from keys(inner, where)
    extra = node.get("additionalProperties")
    if isinstance(extra, dict) and "properties" in extra:
        yield from keys(extra, f"{path}.NAME")


def reference() -> str:
    """docs/kubernetes-values.md."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    lines = [
        "# Values of the chart",
        "",
        "Made by `python helm/tools/generate.py` from `helm/fedward/values.schema.yaml`; do not",
        "edit by hand. `kubernetes.md` says what to do with them.",
    ]
    for where, node in keys(load()):
        if "." not in where:
            lines += ["", f"## {where}", "", node["description"], ""]
            if "properties" in node:
                lines += ["| key | default | what it is |", "|---|---|---|"]
                continue
            lines += [f"Default: {_default(values, where)}"]
        elif "properties" in node:
            lines.append(f"| **{where}** | | {_cell(node)} |")
        else:
            lines.append(f"| `{where}` | {_default(values, where)} | {_cell(node)} |")
    return "\n".join(lines) + "\n"


def _cell(node: Schema) -> str:
    text = str(node["description"]).replace("|", "\\|")
    if "enum" in node:
        text += (
            " One of " + ", ".join(f"`{value!s}`" for value in node["enum"] if value != "") + "."
        )
    return text


def _default(values: Any, where: str) -> str:
    for part in where.split("."):
        if not isinstance(values, dict) or part not in values:
            return ""
        values = values[part]
    return f"`{json.dumps(values)}`" if values not in ("", None) else ""


def outputs() -> dict[Path, str]:
    """Every file that is made, with what belongs in it."""
    files = {
        CHART / "values.schema.json": json_schema(),
        ROOT / "docs" / "kubernetes-values.md": reference(),
    }
    for source, pattern, target in COPIED:
        files |= {target / path.name: path.read_text() for path in sorted(source.glob(pattern))}
    return files


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description="Make the chart's generated files.")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    check = parser.parse_args().check
    stale = 0
    for path, text in outputs().items():
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        print(f"{path.relative_to(ROOT)} is out of date" if check else path.relative_to(ROOT))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
