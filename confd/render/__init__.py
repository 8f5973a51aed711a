"""Rendering: Jinja2, strict about what is missing, with filters for output that must be safe.  Pure."""

from __future__ import annotations

import base64
import fnmatch
import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import msgspec

_BARE = re.compile(r"[A-Za-z0-9_./:-]*\Z")


class RenderError(ValueError):
    """A template cannot be rendered; the text names template, line and reason."""


def bare(value: object) -> str:
    """A word that needs no quoting anywhere; raises RenderError for any other."""
    text = str(value)
    if not _BARE.match(text):
        raise RenderError(f"{text!r} is not a bare word")
    return text


class Renderer:
    """Renders templates by name from a loader."""

    def __init__(self, loader: jinja2.BaseLoader) -> None:
        self._environment = jinja2.Environment(
            loader=loader,
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # noqa: S701  # configuration files, not HTML; see the filter `bare`
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            extensions=["jinja2.ext.do"],
        )
        self._environment.filters["bare"] = bare
        self._environment.filters["to_json"] = _to_json
        self._environment.filters["base64"] = base64_text
        self._environment.filters["quoted"] = quoted

    def render(self, template: str, values: Mapping[str, Any]) -> str:
        """Raises RenderError."""
        try:
            return self._environment.get_template(template).render(values)
        except jinja2.TemplateSyntaxError as why:
            raise RenderError(f"{template}, line {why.lineno}: {why.message}") from None
        except jinja2.TemplateError as why:
            raise RenderError(f"{template}: {why}") from None


def quoted(value: object) -> str:
    """A string in quotes, for files that know no escapes; raises RenderError for a text that cannot be one."""
    text = str(value)
    if '"' in text or any(ord(c) < 32 for c in text):
        raise RenderError("a text with quotes or control characters cannot be written here")
    return f'"{text}"'


def base64_text(value: object) -> str:
    """RFC 4648: any text as one that needs no quoting."""
    return base64.b64encode(str(value).encode()).decode()


def _to_json(value: Any) -> str:
    """Pretty and stable, so that equal content is equal text."""
    return json.dumps(msgspec.to_builtins(value), indent=1, sort_keys=True)


def key_functions(keys: Mapping[str, str]) -> dict[str, Any]:
    """``getv``, ``getvs``, ``gets``, ``exists``, ``ls``: what templates of confd use to read keys."""

    def getv(key: str, default: str | None = None) -> str:
        if key in keys:
            return keys[key]
        if default is None:
            raise RenderError(f"key {key!r} does not exist")
        return default

    def gets(pattern: str) -> list[dict[str, str]]:
        return [{"key": k, "value": v} for k, v in sorted(keys.items()) if fnmatch.fnmatchcase(k, pattern)]

    def ls(folder: str) -> list[str]:
        root = folder.rstrip("/") + "/"
        return sorted({k[len(root) :].partition("/")[0] for k in keys if k.startswith(root)})

    return {
        "getv": getv,
        "gets": gets,
        "getvs": lambda pattern: [pair["value"] for pair in gets(pattern)],
        "exists": lambda key: key in keys,
        "ls": ls,
        "base": posixpath.basename,
        "dir": posixpath.dirname,
        "parse_json": json.loads,
    }
