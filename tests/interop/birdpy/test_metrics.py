"""What Prometheus reads of birdpy while it talks to a real BIRD; and whether birdpy calls itself ready."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.interop.birdpy.world import BirdPeer, R, World, bgp_peer, until

pytestmark = pytest.mark.timeout(90)
PORT = 9324
FILTER = {"spec": {"importV4": [{"action": "Reject", "matchOperator": "Equal", "cidr": "100.64.3.0/24"}]}}


def get(world: World, path: str) -> tuple[int, str]:
    def fetch() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()

    return world.node.call(fetch)


def figures(world: World) -> dict[tuple[str, str], float]:
    """(metric, name of the peer or other label) -> value."""
    found = {}
    for family in text_string_to_metric_families(get(world, "/metrics")[1]):
        for sample in family.samples:
            labels = sample.labels
            found[sample.name, labels.get("name") or "/".join(labels.values())] = sample.value
    return found


def test_each_peer_has_its_figures_and_a_lost_one_is_counted_and_makes_birdpy_unready() -> None:
    settings = {"BIRDPY_HTTP_PORT": str(PORT), "BIRDPY_RESTART_TIME_S": "0"}
    with World(settings=settings) as world:
        world.node.run("ip", "link", "set", "lo", "up")
        world.objects[R + "bgpfilters/f"] = FILTER
        world.objects[R + "bgppeers/a"] = bgp_peer("172.31.1.21", 64701, filters=["f"])
        world.objects[R + "bgppeers/b"] = bgp_peer("172.31.1.22", 64702)
        world.start()
        status, why = get(world, "/readiness")
        assert status == 503
        assert "Node_172_31_1_21" in why, "it says whom it waits for"
        assert get(world, "/liveness")[0] == 200
        routes = tuple(f"100.64.{n}.0/24 blackhole" for n in range(4))
        world.peers(
            BirdPeer("a", "172.31.1.21", 64701, routes=routes),
            BirdPeer("b", "172.31.1.22", 64702, channel="import all; export where bgp_path.len < 1;",
                     routes=("100.64.0.0/24 blackhole", "100.64.9.0/24 blackhole")),
        )  # fmt: skip
        until("routes", lambda: len(world.kernel()) == 4)
        until("readiness", lambda: get(world, "/readiness")[0] == 200)
        a, b = "Node_172_31_1_21", "Node_172_31_1_22"
        until("what was sent", lambda: figures(world)["bird_protocol_changes_update_export_accept_count", b] == 1)
        got = figures(world)
        assert got["bird_protocol_up", a] == 1
        assert got["bird_protocol_prefix_import_count", a] == 3
        assert got["bird_protocol_prefix_filter_count", a] == 1
        assert got["bird_protocol_prefix_filter_count", b] == 0
        preferred = [got["bird_protocol_prefix_preferred_count", name] for name in (a, b)]
        assert sum(preferred) == 4, "each of the four prefixes has one best path"
        assert got["bird_protocol_changes_update_import_receive_count", a] == 4
        assert got["bird_bgp_state_count", a] == 1
        assert got["bgp_peers", "IPv4/Established"] == 2
        assert got["bgp_routes_imported", "IPv4"] == 5
        assert got["birdpy_fib_routes", ""] == 4
        assert got["birdpy_exabgp_connected", ""] == 1
        assert got["birdpy_apply_time_seconds_count", ""] >= 1
        assert got["exabgp_process_resident_memory_bytes", ""] > 1e6
        world.end_peer("b")
        until("loss", lambda: figures(world)["birdpy_peer_losses_total", b] == 1)
        lost = figures(world)
        assert lost["bird_protocol_up", b] == 0
        assert lost["bird_protocol_prefix_import_count", b] == 0
        assert lost["bird_protocol_prefix_preferred_count", a] == 3
        status, why = get(world, "/readiness")
        assert status == 503, "within the first half minute every session counts"
        assert b in why
        assert a not in why
