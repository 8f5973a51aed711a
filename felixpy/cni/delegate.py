"""Other IPAM plugins: run by name from CNI_PATH, with our configuration on stdin, as the specification says.

Source: CNI specification 1.1.0, section 4, "Plugin delegation".
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from felixpy.cni.errors import BAD_CONFIG, BAD_ENVIRONMENT, FAILED, CniError
from felixpy.cni.request import Request
from felixpy.cni.results import Result, parse

_TIMEOUT_S = 90.0


async def delegate(request: Request, command: str) -> Result | None:
    """Run the configuration's IPAM plugin; return its result if ``command`` is ADD.

    Raises:
        CniError: It is not there, or the error that it gave.
    """
    kind = request.ipam_type
    program = _find(kind, request.path)
    environ = {**os.environ, **request.environ, "CNI_COMMAND": command}
    # else plugins complain of arguments that are not theirs
    environ["CNI_ARGS"] = ";".join(filter(None, ("IgnoreUnknown=1", request.environ.get("CNI_ARGS", ""))))
    process = await asyncio.create_subprocess_exec(
        str(program), env=environ, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate(json.dumps(_conf(request, command)).encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CniError(FAILED, f"IPAM plugin {kind} has not answered within {_TIMEOUT_S:g} s") from None
    text = output.decode("utf-8", "replace")
    if process.returncode:
        raise _failure(kind, text)
    return parse(text, f"IPAM plugin {kind}") if command == "ADD" else None


def _find(kind: str, path: str) -> Path:
    if not kind or "/" in kind:
        raise CniError(BAD_CONFIG, f"ipam.type {kind!r} is no name of a plugin")
    for folder in filter(None, path.split(":")):
        if os.access(found := Path(folder) / kind, os.X_OK):
            return found
    raise CniError(BAD_ENVIRONMENT, f"IPAM plugin {kind} is not in CNI_PATH", path)


def _failure(kind: str, text: str) -> CniError:
    try:
        said = json.loads(text)
        return CniError(int(said["code"]), f"IPAM plugin {kind}: {said['msg']}", str(said.get("details") or ""))
    except (ValueError, KeyError, TypeError):
        return CniError(FAILED, f"IPAM plugin {kind} has failed", text.strip()[:500])


def _conf(request: Request, command: str) -> Mapping[str, Any]:
    """The configuration; "usePodCidr" is Kubernetes', but a DEL must go through whatever it says."""
    if command != "DEL":
        return request.conf
    return {**request.conf, "ipam": _without_pod_cidr(dict(request.ipam))}


def _without_pod_cidr(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_pod_cidr(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_pod_cidr(inner) for inner in value]
    dummies = {"usepodcidr": "0.0.0.0/0", "usepodcidripv6": "::/0"}
    return dummies.get(value.lower(), value) if isinstance(value, str) else value
