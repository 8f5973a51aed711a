"""The documentation's command blocks run against a real etcd, and the agent accepts what they leave there.

On pages that say so (``commands: tested``) a fenced block of ``bash`` is run, one of ``yaml`` that holds resources is
applied; all of a page in their order in one shell.  Blocks of other languages, indented ones, and other pages are
illustrations: docs/index.md and, on those pages, docs/generate.py say so to the reader.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from confd.context.bgp import BgpContext
from confd.context.store import BgpStore
from felixpy.calc.graph import CalcGraph
from libcalico.datastore.etcd import EtcdDatastore, EtcdSettings
from libcalico.model.codec import decode_value
from libcalico.model.keys import KINDS, ResourceKey, parse_key
from tests.etcd_server import DIE_WITH_PARENT, EtcdServer, free_port

pytestmark = pytest.mark.timeout(300)  # some pages start felixctl ten times

DOCS = Path(__file__).parents[3] / "docs"
TESTED = "<!-- commands: tested -->"
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.read_text().startswith(TESTED))
LANGUAGES = {"bash", "yaml", "console", "ini", "text", "json", "toml", "nft"}
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in _FENCE.finditer(text)]


def is_resources(block: Block) -> bool:
    return block.language == "yaml" and "apiVersion: projectcalico.org/v3" in block.text


def is_run(block: Block) -> bool:
    return block.language == "bash" or is_resources(block)


OWN_TESTS = {"cookbook.md", "bgp-designs.md"}
RUN = [page for page in PAGES if any(map(is_run, blocks(page))) and page.name not in OWN_TESTS]


def script(page: Path) -> str:
    """All that is run of a page, each block named before it runs."""
    parts = ["set -euo pipefail"]
    for block in blocks(page):
        if block.language == "text" and block.text.startswith("sessions\n"):
            parts.append(f"etcdctl get --prefix /calico/ -w json > sessions-{block.line}.json")
        if not is_run(block):
            continue
        parts.append(f"echo '@@ {page.name} line {block.line}' >&2")
        parts.append(block.text if block.language == "bash" else f"felixctl apply -f - <<'@@END'\n{block.text}@@END")
    return "\n".join(parts)


def environment(etcd: EtcdServer, **more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "ETCDCTL_API": "3",
        "ETCDCTL_ENDPOINTS": etcd.url,
        "ETCD_ENDPOINTS": etcd.url,
        **more,
    }


def run_page(page: Path, etcd: EtcdServer, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", script(page)], cwd=folder, env=environment(etcd), capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n{done.stdout[-1000:]}"


async def stored(etcd: EtcdServer) -> dict[str, bytes]:
    store = EtcdDatastore(EtcdSettings.from_env({"ETCD_ENDPOINTS": etcd.url}))
    try:
        return {row.key: row.value for row in (await store.list("/calico/")).items}
    finally:
        await store.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_block_is_run_or_an_illustration(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page.name} line {block.line}: which language?"
        if block.language == "yaml":
            assert list(yaml.safe_load_all(block.text)), f"{page.name} line {block.line}"
        if block.language == "console":
            prompts = re.findall(r"^[#$] ", block.text, re.MULTILINE)
            assert prompts, f"{page.name} line {block.line}: a session has prompts"


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(DOCS)))
async def test_a_page_runs_and_all_nodes_accept_what_it_leaves(page: Path, etcd: EtcdServer, tmp_path: Path) -> None:
    run_page(page, etcd, tmp_path)
    await accepted(etcd)


async def accepted(etcd: EtcdServer) -> dict[str, bytes]:
    """All that is stored; every reader of ours must be able to use it."""
    left = await stored(etcd)
    for node in ("node1", "node2"):
        graph = CalcGraph(node)
        for path, value in left.items():
            key = parse_key(path)
            if key is not None:
                decode_value(key, value)
            graph.on_update(path, value, 1)
        graph.flush()
        assert {path: problem.reason for path, problem in graph.problems.items()} == {}
    doctor = subprocess.run(
        ["felixctl", "doctor"], env=environment(etcd), capture_output=True, text=True, timeout=60, check=False
    )
    assert doctor.returncode == 0, doctor.stdout
    return left


def sessions(file: Path, node: str) -> list[str]:
    """The sessions that confd makes of what was stored, in the order of their names."""
    store = BgpStore(node)
    for row in json.loads(file.read_text())["kvs"]:
        store.on_update(base64.b64decode(row["key"]).decode(), base64.b64decode(row["value"]))
    context = BgpContext(store)
    config = context.build()
    assert config is not None
    assert context.problems == {}
    return sorted(peer.name for peer in config.peers)


def test_every_bgp_design_makes_the_sessions_that_the_page_says(etcd: EtcdServer, tmp_path: Path) -> None:
    page = DOCS / "bgp-designs.md"
    run_page(page, etcd, tmp_path)
    said = [block for block in blocks(page) if block.text.startswith("sessions\n")]
    assert len(said) == 4
    for block in said:
        for line in block.text.splitlines()[1:]:
            node, _, names = line.partition(": ")
            assert sessions(tmp_path / f"sessions-{block.line}.json", node) == names.split(), (
                f"line {block.line}: {node}"
            )


# kinds that no one writes by hand on etcd (docs/reference, calico: IPAM's own, or Kubernetes' backend)
NOT_WRITTEN = {"BlockAffinity", "IPAMConfig", "LiveMigration"}


async def test_the_cookbook_has_every_kind_and_the_calculation_takes_it(etcd: EtcdServer, tmp_path: Path) -> None:
    run_page(DOCS / "cookbook.md", etcd, tmp_path)
    left = await accepted(etcd)
    kinds = {key.kind for path in left if isinstance(key := parse_key(path), ResourceKey)}
    assert kinds == KINDS.keys() - NOT_WRITTEN
    graph = CalcGraph("node1")
    for path, value in left.items():
        graph.on_update(path, value, 1)
    graph.flush()
    assert graph.datastore_ready
    shown = subprocess.run(
        ["felixctl", "get", ",".join(sorted(kinds)), "-a", "-o", "name"], env=environment(etcd), capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert {line.split("/")[0] for line in shown.stdout.split()} == {KINDS[kind][0] for kind in kinds}
    ((endpoint, state),) = graph.endpoints.items()
    assert (endpoint.workload, state.interface) == ("default/c0ffee", "calic0ffee")
    policy = graph.resolver.endpoint_policy.get(endpoint)
    assert policy is not None
    ingress = [str(p) for tier in policy.ingress for p in tier.policies]
    egress = [str(p) for tier in policy.egress for p in tier.policies]
    assert ingress == ["StagedNetworkPolicy(default/web-strict)", "NetworkPolicy(default/web-in)"]
    assert egress == ["GlobalNetworkPolicy(platform.dns)", "StagedGlobalNetworkPolicy(no-telnet)"]
    config = graph.config.get("felix")
    assert config is not None
    assert config.deny_log == "10/second"
    assert {str(key.prefix) for key, _ in graph.routing.routes.items()} == {"10.244.0.0/26", "10.244.0.10/32"}


def test_the_certificates_of_three_hosts_let_our_clients_in_and_nobody_else(tmp_path: Path) -> None:
    page = DOCS / "three-hosts.md"
    first = next(block for block in blocks(page) if block.language == "bash")
    subprocess.run(["bash", "-euc", first.text], cwd=tmp_path, capture_output=True, timeout=60, check=True)
    pki = tmp_path / "pki"
    url, peer = (f"https://127.0.0.1:{free_port()}" for _ in range(2))
    variables = dict(
        line.split("=", 1) for block in blocks(page) if block.language == "ini" for line in block.text.splitlines()
        if line.startswith(("ETCD_CLIENT_CERT", "ETCD_PEER_CLIENT", "ETCD_AUTO", "ETCD_QUOTA"))
    )  # fmt: skip
    files = {
        "ETCD_TRUSTED_CA_FILE": "ca.crt", "ETCD_CERT_FILE": "node1.crt", "ETCD_KEY_FILE": "node1.key",
        "ETCD_PEER_TRUSTED_CA_FILE": "ca.crt", "ETCD_PEER_CERT_FILE": "node1.crt", "ETCD_PEER_KEY_FILE": "node1.key",
    }  # fmt: skip
    environ = {**os.environ, **variables, **{name: str(pki / file) for name, file in files.items()},
               "ETCD_LISTEN_CLIENT_URLS": url, "ETCD_ADVERTISE_CLIENT_URLS": url, "ETCD_LISTEN_PEER_URLS": peer,
               "ETCD_INITIAL_ADVERTISE_PEER_URLS": peer, "ETCD_INITIAL_CLUSTER": f"node1={peer}", "ETCD_NAME": "node1",
               "ETCD_DATA_DIR": str(tmp_path / "data"), "ETCD_LOG_LEVEL": "error"}  # fmt: skip
    with subprocess.Popen([*DIE_WITH_PARENT, "etcd"], env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            ours = {"ETCD_CA_CERT_FILE": str(pki / "ca.crt"), "ETCD_CERT_FILE": str(pki / "felixpy.crt"),
                    "ETCD_KEY_FILE": str(pki / "felixpy.key"), "ETCD_ENDPOINTS": url}  # fmt: skip

            def ask(settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    ["felixctl", "get", "nodes"], env={**environment_without_etcd(), **settings}, capture_output=True,
                    text=True, timeout=60, check=False,
                )  # fmt: skip

            for _ in range(20):  # it takes a moment to listen; each try waits for the client's own deadline
                if (allowed := ask(ours)).returncode == 0:
                    break
            assert allowed.returncode == 0, allowed.stderr
            bare = {name: value for name, value in ours.items() if name not in {"ETCD_CERT_FILE", "ETCD_KEY_FILE"}}
            assert ask(bare).returncode != 0, "without a certificate nobody is let in"
        finally:
            process.kill()


def environment_without_etcd() -> dict[str, Any]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**{k: v for k, v in os.environ.items() if not k.startswith("ETCD")}, "PATH": path}
