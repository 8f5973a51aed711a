"""``birdpy show …`` and ``birdpy configure``: ask the running daemon."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from birdpy.agent.settings import BirdpySettings
from libcalico.runtime.control import ControlError, call

_ROUTE = "show route [for ADDRESS] [protocol NAME] [export NAME] [all]"


def ask(settings: BirdpySettings, args: argparse.Namespace) -> int:
    """0; 1: it says no, or does not answer."""
    try:
        return asyncio.run(_ask(settings, args))
    except (ControlError, ValueError) as why:
        sys.stderr.write(f"birdpy: {why}\n")
        return 1


async def _ask(settings: BirdpySettings, args: argparse.Namespace) -> int:
    if args.command == "configure":
        print(await call(settings.control_socket, "configure", timeout_s=30))
        return 0
    from birdpy.agent import show  # confd waits for `birdpy configure`, which needs none of it

    asked, *words = args.what
    what = {"neighbors": "protocols", "protocol": "protocols", "routes": "route"}.get(asked, asked)
    if what not in {"status", "protocols", "route"}:
        raise ValueError(f"cannot show {asked!r}: status, protocols, neighbors or route")
    options = _options(words) if what == "route" else {}
    result: Any = await call(settings.control_socket, what, options)
    if what == "protocols":
        names = [w for w in words if w != "all"]
        if unknown := set(names) - {p["name"] for p in result}:
            raise ValueError(f"there is no protocol {', '.join(sorted(unknown))}")
        result = [p for p in result if not names or p["name"] in names]
    if args.output == "json":
        print(json.dumps(result, indent=2))
    elif what == "status":
        show.print_status(result)
    elif asked == "neighbors":
        show.print_neighbors(result)
    elif what == "protocols":
        show.print_protocols(result, every="all" in words)
    else:
        show.print_routes(result, every="all" in words)
    return 0


def _options(words: list[str]) -> dict[str, str]:
    """``for 10.0.0.1 protocol P export P all``."""
    options: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word == "all":
            continue
        if word not in {"for", "protocol", "export"}:
            raise ValueError(f"unexpected {word!r}: {_ROUTE}")
        value = next(rest, None)
        if value is None:
            raise ValueError(f"{word} what? {_ROUTE}")
        options[word] = value
    return options
