"""Ping: packets from one pod to another all the while, and which of them were lost."""

from __future__ import annotations

import re
import time

from tests.vm.machine import Machine

INTERVAL_S = 0.1
UNDER_WAY = 3  # of the last packets the answers may not have come when ping is ended


class Ping:
    """A ping that runs in a pod of a machine, from ``with`` until the block ends.

    Attributes:
        sent: How many packets; the last few, which may still be under way, are not counted.
        lost: The numbers of those that were never answered.
    """

    def __init__(self, machine: Machine, pod: str, target: str) -> None:
        self.sent, self.lost = 0, [-1]
        self._machine = machine
        self._file = f"/tmp/ping-{pod}"
        self._start = f"ip netns exec {pod} ping -n -i {INTERVAL_S} {target} >{self._file} 2>&1 & echo $!"

    def __enter__(self) -> Ping:
        self._pid = int(self._machine.run(self._start))
        self._machine.until(f"grep -q icmp_seq=3 {self._file}", 20)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(2)  # answers that are late are not lost
        self._machine.run(f"kill -INT {self._pid}")
        text = self._machine.run(f"while kill -0 {self._pid} 2>/dev/null; do sleep 0.1; done; cat {self._file}")
        answered = {int(n) for n in re.findall(r"bytes from .* icmp_seq=(\d+) ", text)}
        summary = re.search(r"(\d+) packets transmitted", text)
        self.sent = int(summary[1]) - UNDER_WAY if summary else 0
        self.lost = sorted(set(range(1, self.sent + 1)) - answered)


def reaches(machine: Machine, pod: str, target: str) -> bool:
    return machine.ask(f"ip netns exec {pod} ping -q -c 1 -W 3 {target}").status == 0
