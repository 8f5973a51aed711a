"""The version of what is installed, and ``--version`` for every program."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def own_version() -> str:
    """As in pyproject.toml; ``unknown`` where nothing is installed, as in a bare source tree."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("felixpy")
    except PackageNotFoundError:
        return "unknown"


class VersionFlag(argparse.Action):
    """``parser.add_argument("--version", action=VersionFlag)``: looked up only if asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"{parser.prog} {own_version()}")  # noqa: T201
        parser.exit()
