"""Rude peers and a rude ExaBGP: named, contained, and nothing of the others is lost."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.interop.birdpy.raw_peer import (
    KEEPALIVE,
    NOTIFICATION,
    UPDATE,
    RawPeer,
    message,
    open_message,
    update_message,
)
from tests.interop.birdpy.world import NODE, BirdPeer, R, World, bgp_peer, until

pytestmark = pytest.mark.timeout(120)

TOR = BirdPeer("tor", "172.31.1.1", 64701, routes=("198.51.100.0/24 blackhole",))
RUDE, RUDE_AS = "172.31.1.8", 64799
LIMIT = 2000


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    settings = {"BIRDPY_MAX_PREFIXES": str(LIMIT), "BIRDPY_EXABGP_SILENCE_S": "2"}
    with World(settings=settings) as world:
        world.outside.run("ip", "address", "add", f"{RUDE}/24", "dev", "eth1")
        world.objects[R + "bgppeers/tor"] = bgp_peer("172.31.1.1", 64701)
        world.objects[R + "bgppeers/rude"] = bgp_peer(RUDE, RUDE_AS)
        world.peers(TOR)
        world.start()
        yield world


@pytest.fixture
def world(running: World) -> Iterator[World]:
    """The decent session must be the same after each test, and its route must never have gone."""
    until("the decent session", lambda: running.established("tor"), 30)
    until("its route", lambda: "198.51.100.0/24" in running.kernel())
    since = running.since("tor")
    monitor = running.node.popen("ip", "monitor", "route", stdout=-1)
    yield running
    until("the decent session", lambda: running.established("tor"), 30)
    monitor.terminate()
    gone = [line for line in monitor.communicate(timeout=10)[0].splitlines() if "Deleted 198.51.100.0/24" in line]
    assert gone == []
    assert running.since("tor") == since


def of_rude(world: World) -> dict[str, object]:
    return world.sessions()["Node_172_31_1_8"]


def _with_nlri(nlri: bytes) -> bytes:
    return message(UPDATE, update_message(RUDE_AS, RUDE, [])[19:] + nlri)


BAD_UPDATES: dict[str, Callable[[], bytes]] = {
    "attributes longer than the message": lambda: message(UPDATE, struct.pack("!HH", 0, 4000) + b"\x40\x01\x01\x00"),
    "an origin that does not exist": lambda: update_message(
        RUDE_AS, RUDE, [("203.0.113.0", 24)], b"\x40\x01\x01\x09\x40\x02\x00\x40\x03\x04\x0a\x00\x00\x01"
    ),
    "a prefix of 77 bits": lambda: _with_nlri(bytes([77]) + b"\x0a" * 10),
    "no next hop": lambda: update_message(RUDE_AS, RUDE, [("203.0.113.0", 24)], b"\x40\x01\x01\x00\x40\x02\x00"),
    "an AS path cut short": lambda: update_message(
        RUDE_AS,
        RUDE,
        [("203.0.113.0", 24)],
        b"\x40\x01\x01\x00\x40\x02\x04\x02\x09\xff\xff\x40\x03\x04\x0a\x00\x00\x01",
    ),
    "a length that lies": lambda: b"\xff" * 16 + struct.pack("!HB", 5, UPDATE),
    "a marker of zeros": lambda: b"\x00" * 16 + struct.pack("!HB", 19, KEEPALIVE),
    "an unknown kind of message": lambda: message(99, b"hello"),
}


@pytest.mark.parametrize("what", list(BAD_UPDATES))
def test_a_malformed_message_costs_at_most_the_session_it_came_by(world: World, what: str) -> None:
    with RawPeer(world.outside, RUDE, NODE) as rude:
        rude.establish(RUDE_AS)
        rude.send(update_message(RUDE_AS, RUDE, [("192.0.2.0", 24)]))
        until("its good route", lambda: "192.0.2.0/24" in world.kernel())
        rude.send(BAD_UPDATES[what]())
        rude.send(message(KEEPALIVE))
    until("its routes gone", lambda: not {"192.0.2.0/24", "203.0.113.0/24"} & set(world.kernel()))


def test_a_wrong_as_number_is_answered_with_bad_peer_as(world: World) -> None:
    with RawPeer(world.outside, RUDE, NODE) as rude:
        rude.send(open_message(RUDE_AS + 1, "172.31.255.8"))
        refusal = rude.until(NOTIFICATION)
    assert refusal is not None
    assert refusal[:2] == b"\x02\x02", "OPEN message error, bad peer AS (RFC 4271 section 6.2)"
    until("said", lambda: of_rude(world)["lastError"])


def test_peers_that_hang_or_flap_disturb_nobody(world: World) -> None:
    with RawPeer(world.outside, RUDE, NODE):  # says nothing at all
        world.apply({R + "bgpfilters/none": {"spec": {}}})
        assert world.established("tor")
    for _ in range(8):
        with RawPeer(world.outside, RUDE, NODE) as rude:
            rude.send(open_message(RUDE_AS, "172.31.255.8"))
    until("a decent try works", lambda: _establishes(world))


def _establishes(world: World) -> bool:
    try:
        with RawPeer(world.outside, RUDE, NODE) as rude:
            rude.establish(RUDE_AS)
    except (AssertionError, OSError):
        return False
    return True


def test_a_flood_beyond_the_limit_is_refused_said_and_forgotten(world: World) -> None:
    with RawPeer(world.outside, RUDE, NODE) as rude:
        rude.establish(RUDE_AS)
        for high in range(40):
            prefixes = [(f"100.{64 + high}.{low}.0", 24) for low in range(256)]
            rude.send(update_message(RUDE_AS, RUDE, prefixes))
        until("refused", lambda: of_rude(world)["refused"] == 40 * 256 - LIMIT, 30)
        assert of_rude(world)["received"] == LIMIT
        assert "refused" in str(of_rude(world)["lastError"])
        until("programmed", lambda: len(world.kernel()) >= LIMIT, 30)
    until("gone", lambda: len(world.kernel()) < 10, 30)
    assert world.log().count("too-many-prefixes") == 1


def test_a_wrong_password_keeps_that_session_down_and_no_other(world: World) -> None:
    wrong = BirdPeer("wrong", "172.31.1.9", 64777, options='password "wrong";')
    world.passwords[("bgp", "w")] = "right"
    secret = {"secretKeyRef": {"name": "bgp", "key": "w"}}
    world.peers(wrong)
    world.apply({R + "bgppeers/wrong": bgp_peer("172.31.1.9", 64777, password=secret)})
    try:
        time.sleep(2)  # what is tested is that nothing happens
        assert not world.established("wrong")
        world.passwords[("bgp", "w")] = "wrong"
        world.apply({})
        until("with the same one it comes up", lambda: world.established("wrong"), 30)
    finally:
        world.end_peer("wrong")
        world.apply({R + "bgppeers/wrong": None})


def test_an_unusable_peer_or_file_is_named_and_the_running_configuration_stays(world: World) -> None:
    world.apply({R + "bgppeers/bad": {"spec": {"peerIP": "nonsense", "asNumber": 1}}, R + "bgppeers/worse": b"{"})
    assert "nonsense" in world.problems[R + "bgppeers/bad"]
    assert R + "bgppeers/worse" in world.problems
    path = world.folder / "etc" / "speaker.json"
    good = path.read_text()
    path.write_text(good[: len(good) // 2])
    refused = world.ask("configure")
    assert (refused.returncode, "speaker.json" in refused.stderr) == (1, True)
    assert world.show("status")["configurationError"]
    path.write_text(good)
    world.apply({R + "bgppeers/bad": None, R + "bgppeers/worse": None})
    assert not world.show("status")["configurationError"]


def test_a_silent_peer_is_given_up_when_its_hold_time_of_three_seconds_is_over() -> None:
    with World() as world:
        world.objects[R + "bgppeers/tor"] = bgp_peer("172.31.1.1", 64701, keepaliveTime="1s")
        world.peers(TOR)
        world.start()
        until("session", lambda: world.established("tor") and "198.51.100.0/24" in world.kernel(), 30)
        world.freeze("tor")
        until("given up", lambda: "198.51.100.0/24" not in world.kernel(), 15)
        assert "hold" in str(world.sessions()["Node_172_31_1_1"]["lastError"]).lower()


def test_of_two_peers_that_die_only_the_one_that_can_restart_gracefully_keeps_its_routes() -> None:
    """BIRD's default, as FRR's, is to help others, and to promise nothing for itself."""
    peers = (
        BirdPeer("able", "172.31.1.2", 64702, options="graceful restart on;", routes=("198.51.100.0/24 blackhole",)),
        BirdPeer("helper", "172.31.1.3", 64703, routes=("203.0.113.0/24 blackhole",)),
    )
    with World() as world:
        for number, peer in enumerate(peers):
            world.objects[R + f"bgppeers/{peer.name}"] = bgp_peer(peer.address, 64702 + number)
        world.peers(*peers)
        world.start()
        until("routes", lambda: {"198.51.100.0/24", "203.0.113.0/24"} <= set(world.kernel()), 30)
        for peer in peers:
            world.end_peer(peer.name)
        until("gone", lambda: "203.0.113.0/24" not in world.kernel())
        until("both lost", lambda: all(s["state"] == "start" for s in world.sessions().values()))
        assert "198.51.100.0/24" in world.kernel()


def test_a_new_peer_comes_up_while_a_lost_one_answers_nothing_at_all() -> None:
    """ExaBGP does no reload while it has something to say to any peer; to one that is not there it has for minutes."""
    lost, fresh = BirdPeer("lost", "172.31.1.2", 64702), BirdPeer("fresh", "172.31.1.3", 64703)
    with World() as world:
        world.objects[R + "bgppeers/lost"] = bgp_peer("172.31.1.2", 64702)
        world.peers(lost, fresh)
        world.start()
        until("session", lambda: world.established("lost") and "10.65.1.0/26" in world.told("lost"), 30)
        world.outside.run("nft", "add", "table", "inet", "silence")
        world.outside.run(
            "nft", "add", "chain", "inet", "silence", "input", "{ type filter hook input priority 0; policy accept; }"
        )
        world.outside.run("nft", "add", "rule", "inet", "silence", "input", "ip daddr 172.31.1.2 tcp dport 179 drop")
        world.end_peer("lost")
        until("loss", lambda: world.sessions()["Node_172_31_1_2"]["state"] == "start")
        until("an attempt", lambda: "172.31.1.2:179" in world.node.run("ss", "-tn", "state", "syn-sent"), 10)
        world.apply({R + "bgppeers/fresh": bgp_peer("172.31.1.3", 64703)})
        until("the new session", lambda: world.established("fresh") and "10.65.1.0/26" in world.told("fresh"), 20)


def test_an_exabgp_that_hangs_is_replaced_and_forwarding_goes_on() -> None:
    with World(settings={"BIRDPY_EXABGP_SILENCE_S": "1.5"}) as world:
        world.objects[R + "bgppeers/tor"] = bgp_peer("172.31.1.1", 64701)
        world.peers(TOR)
        world.start()
        until("session", lambda: world.established("tor") and "198.51.100.0/24" in world.kernel(), 30)
        monitor = world.node.popen("ip", "monitor", "route", stdout=-1)
        old = world.pid_of_exabgp()
        os.kill(old, signal.SIGSTOP)
        until("another ExaBGP", lambda: world.pid_of_exabgp() not in {0, old}, 30)
        until("session again", lambda: world.established("tor") and "10.65.1.0/26" in world.told("tor"), 40)
        assert "exabgp-hangs" in world.log()
        monitor.terminate()
        lines = monitor.communicate(timeout=10)[0].splitlines()
        assert [line for line in lines if "Deleted 198.51.100.0/24" in line] == []
