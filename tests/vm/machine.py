"""Machine: a virtual machine under software emulation, that is asked to do things over a serial port.

No network but a link between two machines, which is a pair of Unix sockets; nothing of it is on the host.
"""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

MEMORY_MIB = 768
BOOT_S = 400.0


@dataclass(frozen=True)
class Answer:
    """What a script did in the machine: its exit status, and all that it printed."""

    status: int
    output: str


class ScriptFailed(AssertionError):
    """A script that was to succeed did not."""


class Machine:
    """One machine; its disk is a throw-away view of the image, its name is ``node<number>``.

    It lives in ``folder``: sockets, and ``console.log``.  ``disk`` is attached read-only, as /dev/nvme1n1.
    """

    def __init__(self, number: int, image: Path, disk: Path, folder: Path) -> None:
        self.number, self.name, self.address = number, f"node{number}", f"192.0.2.{number}"
        self._folder, self._socket_path = folder, folder / f"agent{number}.sock"
        self._ids = itertools.count(1)
        self._answers: dict[int, Answer] = {}
        self._changed = threading.Condition()
        self._boots = 0
        self._gone = False
        self._process = subprocess.Popen(
            self._command(image, disk), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=(folder / f"qemu{number}.log").open("w"),
        )  # fmt: skip
        self._sock = self._connect()
        self._reader = threading.Thread(target=self._read, name=self.name, daemon=True)
        self._reader.start()

    def _command(self, image: Path, disk: Path) -> list[str]:
        number, folder = self.number, self._folder
        kernel = (
            "root=/dev/nvme0n1 rw console=ttyS0 net.ifnames=0 quiet mitigations=off panic=-1 "
            # interfaces get their MAC address from it: two machines with one would have the same
            f"systemd.machine_id={number:032x} systemd.hostname={self.name} vm.address={self.address}/24"
        )
        near, far = folder / f"link{number}", folder / f"link{3 - number}"
        # one processor each: of more, one would often wait for another that the host does not run just then
        return [
            "qemu-system-x86_64", "-M", "pc", "-accel", "tcg", "-cpu", "max",
            "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none",
            "-serial", f"file:{folder / f'console{number}.log'}",
            "-chardev", f"socket,id=agent,path={self._socket_path},server=on,wait=off",
            "-device", "isa-serial,chardev=agent",
            "-kernel", str(image / "vmlinuz"), "-append", kernel,
            "-drive", f"file={image / 'root.ext4'},if=none,id=root,format=raw,snapshot=on,cache=unsafe",
            "-device", "nvme,drive=root,serial=root",
            "-drive", f"file={disk},if=none,id=disk,format=raw,readonly=on",
            "-device", "nvme,drive=disk,serial=disk",
            "-netdev", f"dgram,id=link,local.type=unix,local.path={near},remote.type=unix,remote.path={far}",
            "-device", f"virtio-net-pci,netdev=link,mac=52:54:00:00:00:{number:02x},romfile=",
        ]  # fmt: skip

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + 30
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.connect(str(self._socket_path))
            except OSError:
                sock.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / f"qemu{self.number}.log").read_text()) from None
                time.sleep(0.05)  # qemu makes the socket; there is nothing to wait on
                continue
            return sock

    def _read(self) -> None:
        try:
            for line in self._sock.makefile("rb"):
                try:
                    told = json.loads(line.lstrip(b"\0"))
                except ValueError:
                    continue  # what the machine's firmware says at power-on
                if not isinstance(told, dict) or "status" not in told:
                    continue  # an echo, from before the port was made raw
                with self._changed:
                    if told["id"] == 0:
                        self._boots += 1
                    else:
                        self._answers[told["id"]] = Answer(told["status"], told["output"])
                    self._changed.notify_all()
        except OSError:
            pass
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def _wait(self, ready: Any, timeout_s: float, what: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: ready() or self._gone, timeout_s)
            if not ready():
                console = (self._folder / f"console{self.number}.log").read_text(errors="replace")[-3000:]
                raise TimeoutError(f"{self.name}: {what}; console:\n{console}")

    def booted(self, times: int = 1) -> None:
        """Wait until it has come up for the n-th time."""
        self._wait(lambda: self._boots >= times, BOOT_S, f"did not boot ({times})")

    def ask(self, script: str, timeout_s: float = 60) -> Answer:
        """Run a shell script in the machine, to its end."""
        number = next(self._ids)
        asked = json.dumps({"id": number, "script": script, "timeout": timeout_s})
        self._sock.sendall(asked.encode() + b"\n")
        self._wait(lambda: number in self._answers, timeout_s + 30, f"no answer to: {script}")
        return self._answers.pop(number)

    def run(self, script: str, timeout_s: float = 60) -> str:
        """The same; what it printed.  Raises ScriptFailed unless it ends with 0."""
        answer = self.ask(f"set -e\n{script}", timeout_s)
        if answer.status != 0:
            raise ScriptFailed(f"{self.name}: status {answer.status}: {script}\n{answer.output}")
        return answer.output

    def until(self, script: str, timeout_s: float = 60) -> str:
        """Run a script again and again, until it succeeds; what it printed then."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.ask(script)
            if answer.status == 0:
                return answer.output
            if time.monotonic() > deadline:
                raise ScriptFailed(f"{self.name}: still not after {timeout_s} s: {script}\n{answer.output}")
            time.sleep(0.5)

    def reboot(self) -> None:
        """Boot it anew; it keeps its disk.  Returns when it is up again."""
        boots = self._boots
        self.run("systemd-run --quiet --on-active=1 systemctl reboot")
        self.booted(boots + 1)

    def close(self) -> None:
        """End it, as when the power fails."""
        self._process.kill()
        self._process.wait()
        self._sock.close()
        self._reader.join(5)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()
