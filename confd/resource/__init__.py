"""Template resources: ``conf.d/*.toml``, as users of confd know them."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KEYS = {"src", "dest", "keys", "prefix", "mode", "uid", "gid", "check_cmd", "reload_cmd"}
_PLACEHOLDER = re.compile(r"\{\{\s*\.?(\w+)\s*\}\}")


class ResourceError(ValueError):
    """A template resource cannot be used; the text names file and reason."""


@dataclass(frozen=True)
class TemplateResource:
    """One template and what is done with its text.

    Attributes:
        name: Name of the TOML file, without its ending.
        src: Template, in the folder ``templates``.
        dest: File to be written.
        keys: Prefixes of keys that the template reads (backend ``etcd``).
        mode: Permission bits.
        uid, gid: Owner, -1: unchanged.
        check_cmd, reload_cmd: Commands; ``{{src}}`` is the staged file, ``{{dest}}`` the real one.
    """

    name: str
    src: str
    dest: Path
    keys: tuple[str, ...] = ()
    mode: int = 0o644
    uid: int = -1
    gid: int = -1
    check_cmd: str = ""
    reload_cmd: str = ""


def load_resources(folder: Path, output_dir: Path, prefix: str = "") -> tuple[list[TemplateResource], list[str]]:
    """Read ``folder/*.toml`` in order of their names; return the usable ones and what is wrong with the others."""
    resources: list[TemplateResource] = []
    errors: list[str] = []
    for path in sorted(folder.glob("*.toml")):
        try:
            resources.append(parse_resource(path.stem, path.read_text(), output_dir, prefix))
        except (OSError, ResourceError) as why:
            errors.append(f"{path}: {why}")
    return resources, errors


def parse_resource(name: str, text: str, output_dir: Path, prefix: str = "") -> TemplateResource:
    """Read one resource.  A relative ``dest`` lies in ``output_dir``.  Raises ResourceError."""
    try:
        section = tomllib.loads(text).get("template")
    except tomllib.TOMLDecodeError as why:
        raise ResourceError(str(why)) from None
    if not isinstance(section, dict):
        raise ResourceError("there is no section [template]")
    if unknown := section.keys() - _KEYS:
        raise ResourceError(f"unknown keys: {', '.join(sorted(unknown))}")
    for key in ("src", "dest"):
        if not isinstance(section.get(key), str) or not section[key]:
            raise ResourceError(f"{key} is missing")
    for key in ("check_cmd", "reload_cmd"):
        try:
            fill(str(section.get(key, "")), {})
        except ValueError as why:
            raise ResourceError(f"{key}: {why}") from None
    root = f"{prefix.rstrip('/')}/{str(section.get('prefix', '')).strip('/')}".rstrip("/")
    return TemplateResource(
        name=name,
        src=section["src"],
        dest=output_dir / section["dest"],
        keys=tuple(f"{root}/{str(key).lstrip('/')}" for key in section.get("keys", [])),
        mode=_mode(section.get("mode", "0644")),
        uid=_number("uid", section),
        gid=_number("gid", section),
        check_cmd=str(section.get("check_cmd", "")),
        reload_cmd=str(section.get("reload_cmd", "")),
    )


def _number(key: str, section: dict[str, Any]) -> int:
    value = section.get(key, -1)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ResourceError(f"{key} {value!r} is no number")
    return value


def _mode(value: Any) -> int:
    try:
        mode = int(str(value), 8)
    except ValueError:
        raise ResourceError(f"mode {value!r} is not octal") from None
    if not 0 <= mode <= 0o7777:
        raise ResourceError(f"mode {value!r} is out of range")
    return mode


def fill(command: str, values: dict[str, str]) -> list[str]:
    """Split a command line into words and replace ``{{src}}`` and ``{{ .src }}`` in them; no shell is involved.

    Raises ValueError for quotes without an end.
    """
    tight = _PLACEHOLDER.sub(lambda m: "{{" + m[1] + "}}", command)
    return [_PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), word) for word in shlex.split(tight)]
