"""checksystem's verdicts on kernels of many kinds."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from felixpy.node.probe import kernel_config_of, listed_modules
from felixpy.node.system import PARTS, Presence, SystemFacts, judge_system, presence
from felixpy.node.verdict import Level, Verdict

ALL = {part.module: Presence.LOADED for part in PARTS}
PROGRAMS = {"nft": "/usr/sbin/nft", "ip": "/usr/sbin/ip", "tc": "/usr/sbin/tc"}


def judged(release: str = "6.1.0-18-amd64", **changes: object) -> dict[str, Verdict]:
    facts = {"release": release, "parts": ALL, "programs": PROGRAMS, **changes}
    return {verdict.name: verdict for verdict in judge_system(SystemFacts(**facts))}  # type: ignore[arg-type]


def test_a_common_host_passes_without_a_word_of_advice() -> None:
    found = judged()
    assert {verdict.level for verdict in found.values()} == {Level.OK}
    assert not any(verdict.advice for verdict in found.values())


@pytest.mark.parametrize(
    ("release", "level"),
    [("5.2.0", Level.OK), ("10.0-rc1", Level.OK), ("5.1.21", Level.FAIL), ("4.19.0-6-amd64", Level.FAIL),
     ("odd", Level.WARN)],
)  # fmt: skip
def test_the_kernel_must_know_nat_in_inet_tables(release: str, level: Level) -> None:
    assert judged(release)["kernel"].level is level


def test_a_part_that_no_node_works_without_fails_and_any_other_only_warns() -> None:
    for part in PARTS:
        missing = judged(parts={**ALL, part.module: Presence.ABSENT})
        assert missing[part.module].level is (Level.FAIL if part.required else Level.WARN)
        assert part.purpose in missing[part.module].advice
        assert [v.name for v in missing.values() if v.level is not Level.OK] == [part.module]


def test_what_the_kernel_itself_says_counts_more_than_files() -> None:
    unknown = dict.fromkeys(ALL, Presence.UNKNOWN)
    assert judged(parts=unknown)["nf_tables"].level is Level.WARN
    assert "--probe" in judged(parts=unknown)["nf_tables"].advice
    assert judged(parts=unknown, probed={"nf_tables": ""})["nf_tables"].level is Level.OK
    assert judged(parts={**ALL, "ipip": Presence.ABSENT}, probed={"ipip": ""})["ipip"].level is Level.OK
    refused = judged(probed={"nft_fib_inet": "Error: Could not process rule"})["nft_fib_inet"]
    assert refused.level is Level.FAIL
    assert "Could not process rule" in refused.found


def test_without_the_library_nft_is_run_and_without_both_nothing_goes() -> None:
    assert judged(libnftables=False)["libnftables"].level is Level.WARN
    assert judged(libnftables=False, programs={})["libnftables"].level is Level.FAIL
    assert judged(programs={**PROGRAMS, "tc": ""})["tc"].level is Level.WARN


NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"loaded": {"ifb"}}, Presence.LOADED),
        ({"builtin": {"ifb"}, "loadable": set()}, Presence.BUILTIN),
        ({"builtin": set(), "loadable": {"ifb"}}, Presence.LOADABLE),
        ({"builtin": set(), "loadable": set()}, Presence.ABSENT),
        ({}, Presence.UNKNOWN),
        ({"config": {"CONFIG_IFB": "y"}}, Presence.BUILTIN),
        ({"config": {"CONFIG_IFB": "m"}}, Presence.LOADABLE),
        ({"config": {"CONFIG_IFB": "m"}, "builtin": set(), "loadable": set()}, Presence.ABSENT),
        ({"config": {}}, Presence.ABSENT),
    ],
)
def test_where_a_part_is_from_whatever_sources_there_are(sources: dict[str, object], expected: Presence) -> None:
    given = {"loaded": NONE, "builtin": None, "loadable": None, "config": None, **sources}
    assert presence("ifb", "CONFIG_IFB", **given) is expected  # type: ignore[arg-type]


def test_modules_are_read_from_files_of_every_packing(tmp_path: Path) -> None:
    file = tmp_path / "modules.dep"
    file.write_text("kernel/net/x_tables.ko.xz:\nkernel/drivers/net/vxlan/vxlan.ko.zst: kernel/net/udp_tunnel.ko.zst\n"
                    "kernel/net/netfilter/nft_chain_nat.ko.gz: a.ko\nkernel/net/cls-u32.ko:\n")  # fmt: skip
    assert listed_modules(file) == {"x_tables", "vxlan", "nft_chain_nat", "cls_u32"}
    assert listed_modules(tmp_path / "modules.builtin") is None


def test_the_kernels_configuration_is_read_packed_or_not(tmp_path: Path) -> None:
    text = "# Linux\nCONFIG_IFB=m\n# CONFIG_VXLAN is not set\nCONFIG_VETH=y\n"
    (tmp_path / "config").write_text(text)
    (tmp_path / "config.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("config", "config.gz"):
        assert kernel_config_of(str(tmp_path / name), "6.1") == {"CONFIG_IFB": "m", "CONFIG_VETH": "y"}
    (tmp_path / "broken.gz").write_bytes(gzip.compress(text.encode())[:-9])
    for name in ("broken.gz", "absent"):
        with pytest.raises(ValueError, match=name):
            kernel_config_of(str(tmp_path / name), "6.1")
