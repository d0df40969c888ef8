"""Reads values.yaml with its comments, and writes what follows from them: values.schema.json and the README's table.

`values.py CHART` writes both. `schema(text)` and `table(text)` are what they should be.
"""

import json
import pathlib
import re
import sys
from dataclasses import dataclass, field

import yaml

from definitions import DEFINITIONS

KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):(?: (.*))?$")
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
BEGIN, END = "<!-- values: begin -->\n", "<!-- values: end -->\n"


class Unsaid(Exception):
    """A value without a comment, or a comment that belongs to none."""


@dataclass
class Value:
    path: tuple
    default: object
    description: str
    extra: dict
    children: list = field(default_factory=list)

    @property
    def is_section(self):
        return isinstance(self.default, dict) and not {"$ref", "additionalProperties"} & self.extra.keys()


def read(text):
    """The values as a tree, each with its comment."""
    root = Value((), yaml.safe_load(text), "", {})
    stack, comment, hidden = [(-1, root)], [], None
    for number, line in enumerate(text.splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if hidden is not None and (not line.strip() or indent > hidden):
            continue
        hidden = None
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped[1:].strip())
            continue
        found = KEY.match(line)
        if not found:
            if stripped and comment:
                raise Unsaid(f"line {number}: a comment before what is no value")
            comment = []
            continue
        while stack[-1][0] >= indent:
            stack.pop()
        parent = stack[-1][1]
        name = found.group(2)
        value = made(parent, name, comment, number)
        parent.children.append(value)
        comment = []
        if value.is_section:
            stack.append((indent, value))
        else:
            hidden = indent
    return root


def made(parent, name, comment, number):
    extra = {}
    for line in comment:
        if line.startswith("@schema "):
            extra |= json.loads(line.removeprefix("@schema "))
    description = " ".join(line for line in comment if not line.startswith("@schema"))
    if not description:
        raise Unsaid(f"line {number}: {name} has no comment")
    return Value((*parent.path, name), parent.default[name], description, extra)


def described(value):
    schema = {"description": value.description}
    if value.is_section:
        children = {child.path[-1]: described(child) for child in value.children}
        return schema | {"type": "object", "additionalProperties": False, "properties": children}
    if value.default is not None and "$ref" not in value.extra and "enum" not in value.extra:
        schema["type"] = TYPES[type(value.default)]
    return schema | value.extra


def schema(text):
    top = {value.path[-1]: described(value) for value in read(text).children}
    # Helm puts it there for charts that have this one as a part.
    top["global"] = {"description": "Values that a parent chart shares.", "type": "object"}
    body = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the Warmkey chart",
        "type": "object",
        "additionalProperties": False,
        "properties": top,
        "$defs": DEFINITIONS,
    }
    return json.dumps(body, indent=2) + "\n"


def leaves(value):
    return [value] if not value.is_section else [leaf for child in value.children for leaf in leaves(child)]


def shown(default):
    if isinstance(default, str) and "\n" in default:
        return "see values.yaml"
    return f"`{json.dumps(default)}`"


def kind(value):
    kinds = described(value).get("type", "object" if isinstance(value.default, dict) else "string")
    return kinds if isinstance(kinds, str) else " or ".join(one for one in kinds if one != "null")


def table(text):
    rows = ["| value | type | default | is |", "|---|---|---|---|"]
    for value in leaves(read(text)):
        description = value.description.replace("|", "\\|")
        rows.append(f"| `{'.'.join(value.path)}` | {kind(value)} | {shown(value.default)} | {description} |")
    return "\n".join(rows) + "\n"


def with_table(readme, text):
    """The README with its table of values as it should be."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table(text) + END + rest.split(END)[1]


def main(chart):
    chart = pathlib.Path(chart)
    text = (chart / "values.yaml").read_text()
    (chart / "values.schema.json").write_text(schema(text))
    readme = chart / "README.md"
    readme.write_text(with_table(readme.read_text(), text))


if __name__ == "__main__":
    main(sys.argv[1])
