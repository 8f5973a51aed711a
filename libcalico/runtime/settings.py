"""Settings: one frozen struct per program; default < file < environment < command line, each value with its origin.

A value that cannot be used ends the start with a sentence that names the setting, where it came from and what stood
there.  Secrets (``password``, ``secret``, ``token`` in the name) are named but never shown.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

_SECRET = re.compile(r"password|passwd|secret|token", re.IGNORECASE)
_LISTS = (list, tuple, set, frozenset)


# types of settings that have limits; what lies outside is refused with the place where it stands
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
AtLeastASecond = Annotated[float, msgspec.Meta(ge=1)]


class ConfigError(Exception):
    """The settings cannot be used; the program ends with EX_CONFIG (78)."""


class Loaded(msgspec.Struct, Generic[T], frozen=True):
    """Settings, and where each of them comes from.

    Attributes:
        value: The settings.
        origin: By name of the setting: ``default``, ``file PATH line N``, ``environment NAME`` or ``command line``.
    """

    value: T
    origin: dict[str, str]

    def explain(self) -> list[tuple[str, str, str]]:
        """(name, value, origin) of every setting, in the struct's order; secrets are hidden."""
        return [(name, _shown(name, getattr(self.value, name)), origin) for name, origin in self.origin.items()]


def load_settings(
    cls: type[T],
    *,
    program: str = "",
    env_prefix: str,
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Loaded[T]:
    """Merge the layers.

    Args:
        cls: A frozen msgspec Struct.
        program: Opens the sentences of errors.
        env_prefix: ``BIRDPY_`` makes ``BIRDPY_RUN_DIR`` set ``run_dir``.  An empty variable counts as unset.  A field
            renamed by ``msgspec.field(name=...)`` has a variable of that name.
            The values of a list are separated by commas.  Names in the struct's ``EMPTY_COUNTS`` may be set to
            nothing.
        file: A TOML file; absent: skipped.  Types are strict here (``"60"`` is no number).
        overrides: From the command line; None values are skipped.
        environ: Default: os.environ.

    Raises:
        ConfigError: Unknown key in the file, unreadable file, a value that does not fit, a required one missing.
    """
    prefix = f"{program}: " if program else ""
    try:
        return _load(cls, env_prefix, file, overrides or {}, os.environ if environ is None else environ)
    except ConfigError as why:
        raise ConfigError(f"{prefix}{why}") from None


def _load(
    cls: type[T], env_prefix: str, file: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str]
) -> Loaded[T]:
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    values: dict[str, Any] = {}
    origin = dict.fromkeys(fields, "default")
    if file is not None:
        content, places = _read(file, fields)
        for name, value in content.items():
            origin[name] = places[name]
            values[name] = _convert(name, value, fields[name].type, origin[name], strict=True)
    for name, field in fields.items():
        variable = f"{env_prefix}{field.encode_name.upper()}"
        text = environ.get(variable, "")
        if text or (variable in environ and name in getattr(cls, "EMPTY_COUNTS", ())):
            origin[name] = f"environment {variable}"
            values[name] = _convert(name, _split(text, field.type), field.type, origin[name], strict=False)
    for name, value in overrides.items():
        if value is None:
            continue
        if name not in fields:
            raise ConfigError(f"there is no setting {name} (command line)")
        origin[name] = "command line"
        values[name] = _convert(name, value, fields[name].type, origin[name], strict=False)
    if missing := [n for n, f in fields.items() if f.required and n not in values]:
        raise ConfigError(f"{missing[0]} must be given: {env_prefix}{missing[0].upper()} or the settings file")
    try:
        return Loaded(cls(**values), origin)
    except (ValueError, TypeError) as why:  # __post_init__: settings that do not fit together
        raise ConfigError(str(why)) from None


def _read(file: Path, fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The file's content, and the place of each key."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}, {}
    except (OSError, UnicodeDecodeError) as why:
        reason = why.strerror if isinstance(why, OSError) and why.strerror else str(why)
        raise ConfigError(f"file {file} cannot be read: {reason}") from None
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as why:
        raise ConfigError(f"file {file} is not TOML: {why}") from None
    places = {name: _place(file, text, name) for name in content}
    for name, value in content.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; is {near[0]} meant?" if near else ""
            kind = "section" if isinstance(value, dict) else "setting"
            raise ConfigError(f"unknown {kind} {name!r} ({places[name]}){hint}")
    return content, places


def _place(file: Path, text: str, name: str) -> str:
    """Where a top-level key stands; the TOML reader does not say, so it is looked for."""
    quoted = re.escape(name)
    found = re.search(rf"^[ \t]*\[?[ \t]*(?:{quoted}|\"{quoted}\"|'{quoted}')[ \t]*[\]=.]", text, re.MULTILINE)
    return f"file {file} line {text.count(chr(10), 0, found.start()) + 1}" if found else f"file {file}"


def _convert(name: str, value: Any, kind: Any, origin: str, *, strict: bool) -> Any:
    try:
        found = msgspec.convert(value, kind, strict=strict, dec_hook=_decode)
    except msgspec.ValidationError as why:
        reason = "does not fit" if _SECRET.search(name) else str(why)  # the reason may quote the value
        raise ConfigError(f"{name} = {_shown(name, value)} ({origin}): {reason}") from None
    if isinstance(found, float) and not math.isfinite(found):
        raise ConfigError(f"{name} = {value!r} ({origin}): Expected a finite number")
    return found


def _decode(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if issubclass(kind, os.PathLike) and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected `{kind.__name__}`, got `{type(value).__name__}`")


def _split(text: str, kind: Any) -> Any:
    """``a, b`` for a list; anything else as it is."""
    return [item.strip() for item in text.split(",") if item.strip()] if _is_list(kind) else text


def _is_list(kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Annotated:
        return _is_list(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return any(_is_list(part) for part in get_args(kind))
    return origin in _LISTS or kind in _LISTS


def _shown(name: str, value: Any) -> str:
    if _SECRET.search(name) and value:
        return "(hidden)"
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 200 else f"{text[:200]}…"
