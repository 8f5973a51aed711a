"""Settings: one frozen struct per program; default < file < environment < command line, each value with its origin."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


class ConfigError(Exception):
    """The settings cannot be used; the program ends with EX_CONFIG (78)."""


class Loaded(msgspec.Struct, Generic[T], frozen=True):
    """Settings and where each of them comes from: ``default``, ``file``, ``environment``, ``command line``."""

    value: T
    origin: dict[str, str]


def load_settings(
    cls: type[T],
    *,
    env_prefix: str,
    environ: Mapping[str, str],
    file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Loaded[T]:
    """Merge the layers; raises ConfigError that names the setting, its origin and its value.

    Args:
        cls: A frozen msgspec Struct whose fields all have defaults.
        env_prefix: ``BIRDPY_`` makes ``BIRDPY_RUN_DIR`` set ``run_dir``.
        environ: Usually os.environ.
        file: A TOML file; absent: skipped.
        overrides: From the command line; None values are skipped.
    """
    fields = cls.__struct_fields__
    values: dict[str, Any] = {}
    origin = dict.fromkeys(fields, "default")
    if file is not None and file.exists():
        try:
            content = tomllib.loads(file.read_text())
        except (OSError, ValueError) as why:
            raise ConfigError(f"{file}: {why}") from None
        if unknown := content.keys() - set(fields):
            raise ConfigError(f"{file}: unknown settings {', '.join(sorted(unknown))}")
        for name, value in content.items():
            values[name], origin[name] = value, f"file {file}"
    for name in fields:
        variable = f"{env_prefix}{name.upper()}"
        if environ.get(variable):
            values[name], origin[name] = environ[variable], f"environment {variable}"
    for name, value in (overrides or {}).items():
        if value is not None:
            values[name], origin[name] = value, "command line"
    try:
        return Loaded(msgspec.convert(values, cls, strict=False), origin)
    except msgspec.ValidationError as why:
        field = str(why).rpartition("$.")[2].rstrip("`").partition("[")[0]
        raise ConfigError(f"{field} = {values.get(field)!r} ({origin.get(field, 'unknown')}): {why}") from None
