"""ExaBGP's end with ours: nothing of it is left over for a loop that is closed, which would show as a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import asyncio, gc, sys
from pathlib import Path
from birdpy.exabgp.process import ExabgpProcess

async def main():
    folder = Path(sys.argv[1])
    process = ExabgpProcess(folder / "exabgp.conf", folder)
    process.start({"exabgp.daemon.daemonize": "false"})
    task = asyncio.create_task(process.run())
    while process.pid is None:
        await asyncio.sleep(0)
    pid = process.pid
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    print(pid, Path(f"/proc/{pid}").exists())

asyncio.run(main())
gc.collect()
"""


def test_asked_to_stop_it_waits_for_the_end_of_exabgp(tmp_path: Path) -> None:
    (tmp_path / "exabgp.conf").write_text("neighbor 192.0.2.1 { }\n")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", CODE, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "ResourceWarning" not in done.stderr
    assert done.stdout.split()[-1] == "False", "it is gone, and reaped"
