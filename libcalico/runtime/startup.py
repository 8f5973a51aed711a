"""The first lines of every program: settings from their layers, and logging as they say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import msgspec

from libcalico.runtime.logs import LogFormat, configure_logging
from libcalico.runtime.settings import ConfigError, load_settings


class _WithLogging(Protocol):
    log_level: str
    log_format: str


T = TypeVar("T", bound=msgspec.Struct)


def start(cls: type[T], program: str, *, file: Path, overrides: Mapping[str, Any]) -> T:
    """Load the settings of ``program`` (environment ``<PROGRAM>_<NAME>``) and set logging up.

    Raises:
        ConfigError: A setting cannot be used; the text names it, its value and where it comes from.
    """
    prefix = f"{program.upper()}_"
    settings = load_settings(cls, env_prefix=prefix, environ=os.environ, file=file, overrides=overrides).value
    logging = cast(_WithLogging, settings)
    if logging.log_format not in {"auto", "console", "json"}:
        raise ConfigError(f"log_format = {logging.log_format!r}: none of auto, console, json")
    try:
        configure_logging(program, logging.log_level, cast(LogFormat, logging.log_format))
    except ValueError as why:
        raise ConfigError(f"log_level: {why}") from None
    return settings
