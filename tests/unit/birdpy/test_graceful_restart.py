"""Which of a lost peer's routes stay, and for how long once it is back (RFC 4724 section 4.2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from birdpy.agent.daemon import Daemon
from birdpy.agent.settings import BirdpySettings
from libcalico.model.speaker import Peer, SpeakerConfig
from libcalico.net import Prefix
from libcalico.runtime.supervise import Program

PEER, V4, V6 = "10.0.0.2", "198.51.100.0/24", "2001:db8:1::/48"
BOTH = {"ipv4/unicast": ["restart"], "ipv6/unicast": ["restart"]}


class Session:
    """A daemon whose ExaBGP is this test."""

    def __init__(self, folder: Path) -> None:
        self.daemon = Daemon(Program("birdpy"), BirdpySettings(run_dir=str(folder)))
        peer = Peer("p", PEER, as_number=64701, local_as=64512, families=["ipv4", "ipv6"], local_address="10.0.0.1")
        config = SpeakerConfig("n1", "10.0.0.1", 64512, ipv4_address="10.0.0.1/24", peers=[peer])
        self.daemon.speaker.configure(config)
        self.daemon._change_sessions(config)

    def hear(self, kind: str, **neighbor: Any) -> None:
        event = {"type": kind, "neighbor": {"address": {"peer": PEER}, "direction": "receive", **neighbor}}
        self.daemon._on_line(json.dumps(event).encode())

    def comes(self, graceful: dict[str, Any] | None) -> None:
        capabilities: dict[str, Any] = {"1": {"families": ["ipv4/unicast", "ipv6/unicast"]}}
        if graceful is not None:
            capabilities["64"] = {"time": 90, "restart-flags": [], "address-family-flags": {}, **graceful}
        self.hear("open", open={"router_id": "192.0.2.1", "capabilities": capabilities})
        self.hear("state", state="up")

    def tells(self) -> None:
        for family, next_hop, prefix in (("ipv4 unicast", PEER, V4), ("ipv6 unicast", "fd00::2", V6)):
            announce = {family: {next_hop: [{"nlri": prefix}]}}
            self.hear("update", message={"update": {"attribute": {"origin": "igp"}, "announce": announce}})

    def is_lost(self) -> None:
        self.hear("state", state="down", reason="closing connection")

    @property
    def held(self) -> set[str]:
        return {p for p in (V4, V6) if self.daemon.speaker.paths(Prefix.parse(p))}

    @property
    def left_s(self) -> float:
        until = self.daemon.speaker.peers["p"].stale_until
        return 0.0 if until is None else until - self.daemon._clock.monotonic()


@pytest.mark.parametrize(
    ("graceful", "kept"),
    [
        (None, set()),
        ({}, set()),  # a helper: FRR's and BIRD's default
        ({"address-family-flags": BOTH}, {V4, V6}),
        ({"address-family-flags": {"ipv6/unicast": []}}, {V6}),
        ({"address-family-flags": BOTH, "time": 0}, set()),
    ],
)
async def test_routes_of_a_lost_peer_stay_only_for_families_that_it_goes_on_forwarding_for(
    graceful: dict[str, Any] | None, kept: set[str], tmp_path: Path
) -> None:
    session = Session(tmp_path)
    session.comes(graceful)
    session.tells()
    session.is_lost()
    assert session.held == kept
    assert (80 < session.left_s <= 90) is bool(kept)


async def test_when_exabgp_ends_all_peers_routes_stay(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.comes({})
    session.tells()
    session.daemon._exabgp_went()
    assert session.held == {V4, V6}


@pytest.mark.parametrize(
    ("graceful", "hurried"),
    [
        (None, True),  # it sends no End-of-RIB
        ({"restart-flags": ["forwarding"], "address-family-flags": {"ipv4/unicast": ["restart"]}}, True),
        ({"restart-flags": ["forwarding"], "address-family-flags": BOTH}, False),
        ({}, False),  # only the connection broke; End-of-RIB comes
    ],
)
async def test_a_peer_that_is_back_and_has_lost_its_state_or_sends_no_end_of_rib_has_seconds_to_tell_what_holds(
    graceful: dict[str, Any] | None, hurried: bool, tmp_path: Path
) -> None:
    session = Session(tmp_path)
    session.comes({"address-family-flags": BOTH})
    session.tells()
    session.is_lost()
    session.comes(graceful)
    assert session.held == {V4, V6}
    assert (0 < session.left_s <= 10) is hurried
    session.daemon.speaker.tick(session.daemon._clock.monotonic() + 11)
    assert session.held == (set() if hurried else {V4, V6})
