"""How resources are shown: tables, YAML, JSON, names, columns and paths that the user chooses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from felixpy.cli.kinds import Document, columns_of, shown
from felixpy.cli.yamltext import dump
from libcalico.model.keys import KINDS, ResourceKey
from libcalico.model.resources import API_VERSION

Item = tuple[ResourceKey, Document]
FORMATS = "ps, wide, yaml, json, name, custom-columns=HEAD[:PATH],…, jsonpath=TEMPLATE"


def render(
    items: Sequence[Item], how: str, *, single: bool, all_namespaces: bool = False, kinds: Sequence[str] = ()
) -> str:
    """Return the text of ``items``, without the last newline.

    Args:
        items: In the order to be shown.
        how: One of :data:`FORMATS`.
        single: One object was asked for by name: it is shown alone and not as a list.
        all_namespaces: The table has a column for the namespace.
        kinds: What was asked for: shown as empty tables, or an empty list of that kind, when there is none.

    Raises:
        ValueError: The format cannot be read.
    """
    kind, _, argument = how.partition("=")
    match kind:
        case "json":
            return json.dumps(_whole(items, kinds, single=single), indent=2)
        case "yaml":
            return dump(_whole(items, kinds, single=single)).rstrip("\n")
        case "name":
            return "\n".join(f"{KINDS[key.kind][0]}/{key.name}" for key, _ in items)
        case "custom-columns" if argument:
            return _custom(items, argument)
        case "jsonpath" if argument:
            return _template(_whole(items, kinds, single=single), argument)
        case "ps" | "wide" if not argument:
            return _tables(items, kinds, wide=kind == "wide", all_namespaces=all_namespaces)
        case _:
            raise ValueError(f"unrecognized output format '{how}': it is none of {FORMATS}")


def _whole(items: Sequence[Item], asked: Sequence[str], *, single: bool) -> Document:
    documents = [document for _, document in items]
    if single and len(documents) == 1:
        return documents[0]
    kinds = {key.kind for key, _ in items} or set(asked)
    return {
        "apiVersion": API_VERSION,
        "kind": f"{kinds.pop()}List" if len(kinds) == 1 else "List",
        "items": documents,
    }


def _tables(items: Sequence[Item], asked: Sequence[str], *, wide: bool, all_namespaces: bool) -> str:
    """One table per kind; when there is nothing at all, its heading, as calicoctl has it."""
    tables = []
    for kind in dict.fromkeys(key.kind for key, _ in items) or asked:
        columns = columns_of(kind, wide=wide, with_namespace=all_namespaces and KINDS[kind][1])
        rows = [[name for name, _ in columns]]
        rows += [[cell(document) for _, cell in columns] for key, document in items if key.kind == kind]
        tables.append(table(rows))
    return "\n\n".join(tables)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows under each other, three blanks between columns, as calicoctl does."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join("   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _custom(items: Sequence[Item], argument: str) -> str:
    """``NAME,CIDR:.spec.cidr``: a known heading, or a heading and a path."""
    columns = []
    for part in argument.split(","):
        heading, colon, path = part.partition(":")
        columns.append((heading, path if colon else ""))
    rows = [[heading for heading, _ in columns]]
    for key, document in items:
        known = dict(columns_of(key.kind, wide=True, with_namespace=True))
        row = []
        for heading, path in columns:
            if path:
                row.append(shown(_one(follow(document, path))))
            elif heading.upper() in known:
                row.append(known[heading.upper()](document))
            else:
                raise ValueError(f"{key.kind} has no column {heading}; there are {', '.join(known)}")
        rows.append(row)
    return table(rows)


def _one(found: list[Any]) -> Any:
    return None if not found else found[0] if len(found) == 1 else found


# --- jsonpath -------------------------------------------------------------------------------------------------------

_STEP = re.compile(r"\.?\[(?:'([^']*)'|\"([^\"]*)\"|(-?\d+)|(\*))\]|\.\.?([A-Za-z0-9_/-]+|\*)")


def follow(document: Any, path: str) -> list[Any]:
    """The values at a path: ``.spec.nets[0]``, ``.items[*].metadata.name``, ``.labels['a/b']``.  Raises ValueError."""
    text = path.strip()
    text = text.removeprefix("$")
    if text and text[0] not in ".[":
        text = "." + text
    values, place = [document], 0
    while place < len(text):
        if text[place:] == ".":
            break
        step = _STEP.match(text, place)
        if step is None or step[0].startswith(".."):
            raise ValueError(f"cannot read the path {path!r} at {text[place:]!r}")
        place = step.end()
        name = next((g for g in (step[1], step[2], step[5]) if g is not None), None)
        if step[4] or name == "*":
            values = [v for value in values for v in _children(value)]
        elif step[3] is not None:
            index = int(step[3])
            values = [v[index] for v in values if isinstance(v, list) and -len(v) <= index < len(v)]
        else:
            values = [v[name] for v in values if isinstance(v, dict) and name in v]
    return values


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _template(document: Any, template: str) -> str:
    """Text with ``{.path}`` in it, and ``{"\\n"}`` for characters; without braces all of it is a path."""
    if "{" not in template:
        template = "{" + template + "}"
    pieces = []
    for part in re.split(r"(\{[^}]*\})", template):
        if not part.startswith("{"):
            pieces.append(part)
            continue
        inner = part[1:-1].strip()
        if inner[:1] in {'"', "'"}:
            pieces.append(inner[1:-1].encode().decode("unicode_escape"))
        else:
            pieces.append(" ".join(_text(value) for value in follow(document, inner)))
    return "".join(pieces)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else shown(value)
