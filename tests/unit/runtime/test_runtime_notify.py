"""The service manager's protocol, against real datagram sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from libcalico.runtime.notify import Notifier


def _listen(address: str) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    found.bind(address)
    found.settimeout(5)
    return found


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_reach_path_and_abstract_sockets(tmp_path: Path, abstract: bool) -> None:
    name = f"felixpy-test-{os.getpid()}" if abstract else str(tmp_path / "s")
    with _listen(("\0" if abstract else "") + name) as manager:
        notifier = Notifier({"NOTIFY_SOCKET": ("@" if abstract else "") + name})
        for say in (notifier.ready, notifier.watchdog, notifier.stopping):
            say()
        assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_status_cannot_carry_another_assignment(tmp_path: Path) -> None:
    with _listen(str(tmp_path / "s")) as manager:
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "s")}).status("one\nMAINPID=1\r\x1b[31m\0two \ud800")
        assert manager.recv(1000) == rb"STATUS=one MAINPID=1 \x1b[31m\x00two \ud800"


def test_a_status_is_cut_where_it_gets_long(tmp_path: Path) -> None:
    with _listen(str(tmp_path / "s")) as manager:
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "s")}).status("x" * 100_000)
        assert len(manager.recv(200_000)) < 1000


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/there/is/nobody", "@nobody-is-there"])
def test_no_manager_is_no_trouble(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.status("x")
    assert not notifier.behind


def test_a_change_of_state_outlives_a_full_queue(tmp_path: Path) -> None:
    with _listen(str(tmp_path / "s")) as manager:
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "s")})
        sent = 0
        while not notifier.behind:  # the kernel's queue takes a few only
            notifier.ready()
            sent += 1
            assert sent < 100_000
        notifier.watchdog()  # lost
        got = [manager.recv(100)]
        notifier.watchdog()  # there is room for one, and what was kept goes first
        notifier.stopping()
        manager.settimeout(0.2)
        while True:
            notifier.flush()
            try:
                got.append(manager.recv(100))
            except TimeoutError:
                break
        assert got == [b"READY=1"] * sent + [b"STOPPING=1"]
        assert not notifier.behind


@pytest.mark.parametrize(
    ("usec", "pid", "wanted"),
    [
        ("30000000", "", 15.0),
        ("30000000", "mine", 15.0),
        ("30000000", "1", None),
        ("", "", None),
        ("0", "", None),
        ("soon", "", None),
        ("²", "", None),
    ],
)
def test_the_watchdog_is_fed_twice_per_period_if_it_is_ours(usec: str, pid: str, wanted: float | None) -> None:
    pid = str(os.getpid()) if pid == "mine" else pid
    environ = {"NOTIFY_SOCKET": "/nobody", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert Notifier(environ).watchdog_interval_s == wanted
    assert Notifier({**environ, "NOTIFY_SOCKET": ""}).watchdog_interval_s is None
