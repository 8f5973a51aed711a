"""nftables through libnftables in this process: one context, in one thread of its own, so that the loop never waits.

In process a change costs 0.6-1.0 ms; a spawned ``nft -f`` 5-16 ms (bench/nft.py).  The spawned one remains for hosts
without the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ctypes.util
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from libcalico.kernel.errors import KernelError, Rejected, Unreadable

T = TypeVar("T")

THREAD_NAME = "felixpy-nft"  # the kernel tells it in every generation notice, so we know our own changes by it
_PR_SET_NAME = 15
_FLAG_HANDLE, _FLAG_JSON, _FLAG_NUMERIC_PROTO, _FLAG_NUMERIC_PRIO, _FLAG_NUMERIC_SYMBOL = 8, 16, 128, 256, 512
_LIST_FLAGS = _FLAG_HANDLE | _FLAG_JSON | _FLAG_NUMERIC_PROTO | _FLAG_NUMERIC_PRIO | _FLAG_NUMERIC_SYMBOL


class NftOps(Protocol):
    """What the reconciler needs of nftables."""

    async def run(self, script: str, *, check_only: bool = False) -> None:
        """Run a script as one atomic transaction.  Raises Rejected with nft's own words."""
        ...

    async def list_table(self, family: str, table: str) -> list[dict[str, Any]] | None:
        """The JSON objects of a table, or None when it does not exist."""
        ...

    def close(self) -> None: ...


class LibNft:
    """libnftables by ctypes.  Raises OSError when the library is not there."""

    def __init__(self) -> None:
        self._lib = _load()
        self._executor = ThreadPoolExecutor(1, THREAD_NAME, initializer=_name_thread)
        self._context: int | None = None

    def close(self) -> None:
        self._executor.submit(self._free).result()
        self._executor.shutdown()

    def _free(self) -> None:
        if self._context is not None:
            self._lib.nft_ctx_free(self._context)
            self._context = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def run(self, script: str, *, check_only: bool = False) -> None:
        code, _, error = await self._in_thread(lambda: self._command(script, 0, check_only))
        if code:
            raise Rejected(_tidy(error))

    async def list_table(self, family: str, table: str) -> list[dict[str, Any]] | None:
        command = f"list table {family} {table}"
        code, output, error = await self._in_thread(lambda: self._command(command, _LIST_FLAGS, False))
        if code:
            if "No such file or directory" in error:
                return None
            raise KernelError(_tidy(error))
        return _objects(output)

    def _command(self, text: str, flags: int, check_only: bool) -> tuple[int, str, str]:
        lib = self._lib
        if self._context is None:
            self._context = lib.nft_ctx_new(0)
            lib.nft_ctx_buffer_output(self._context)
            lib.nft_ctx_buffer_error(self._context)
        lib.nft_ctx_output_set_flags(self._context, flags)
        lib.nft_ctx_set_dry_run(self._context, check_only)
        code = lib.nft_run_cmd_from_buffer(self._context, text.encode())
        output = (lib.nft_ctx_get_output_buffer(self._context) or b"").decode(errors="replace")
        error = (lib.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace")
        return code, output, error


def _load() -> Any:
    lib = ctypes.CDLL(ctypes.util.find_library("nftables") or "libnftables.so.1")
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
    lib.nft_ctx_free.argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(lib, name).argtypes = [ctypes.c_void_p]
        getattr(lib, name).restype = ctypes.c_char_p
    lib.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    lib.nft_ctx_set_dry_run.argtypes = [ctypes.c_void_p, ctypes.c_bool]
    lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return lib


def has_library() -> bool:
    """True if nftables can be spoken to in process."""
    try:
        _load()
    except OSError:
        return False
    return True


def _objects(output: str) -> list[dict[str, Any]]:
    """What a listing holds.

    Raises:
        Unreadable: It is no JSON, or the table has flags, which we never give: of one that is dormant no rule is asked.
            Which flag it is nft 1.0.6 does not say; it writes at random, and what it writes need not be JSON.
    """
    try:
        objects: list[dict[str, Any]] = json.loads(output)["nftables"]
    except (ValueError, KeyError, TypeError) as why:
        raise Unreadable(f"nft's listing cannot be read: {why}") from None
    if any("table" in entry and "flags" in entry["table"] for entry in objects):
        raise Unreadable("the table has flags that it should not have")
    return objects


def _name_thread() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, THREAD_NAME.encode())


def _tidy(error: str) -> str:
    """The first message of nft, without the echo of the input that follows."""
    lines = [line for line in error.splitlines() if line.strip()]
    return lines[0].removeprefix("/dev/stdin:").strip() if lines else "nft refused without a word"


class NftProcess:
    """The ``nft`` program, one process per transaction."""

    async def run(self, script: str, *, check_only: bool = False) -> None:
        flags = ["-c"] if check_only else []
        code, _, error = await self._spawn([*flags, "-f", "-"], script)
        if code:
            raise Rejected(_tidy(error))

    async def list_table(self, family: str, table: str) -> list[dict[str, Any]] | None:
        code, output, error = await self._spawn(["-j", "-a", "-n", "list", "table", family, table], "")
        if code:
            if "No such file or directory" in error:
                return None
            raise KernelError(_tidy(error))
        return _objects(output)

    async def _spawn(self, args: list[str], stdin: str) -> tuple[int, str, str]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("nft", *args, stdin=pipe, stdout=pipe, stderr=pipe)
        async with asyncio.timeout(60):
            output, error = await process.communicate(stdin.encode())
        return process.returncode or 0, output.decode(errors="replace"), error.decode(errors="replace")

    def close(self) -> None:
        """Nothing is kept open."""


def open_nft() -> NftOps:
    """libnftables where it is, else the program.  Raises KernelError when there is neither."""
    with contextlib.suppress(OSError):
        return LibNft()
    if shutil.which("nft"):
        return NftProcess()
    raise KernelError("neither libnftables nor the program nft is installed")
