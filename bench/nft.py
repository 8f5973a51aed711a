"""One chain replaced, one element added: libnftables in process against a spawned ``nft -f``, in one run."""

from __future__ import annotations

import statistics
import time

from libcalico.dataplane.ruleset import Chain, Element, NftSet, Rule
from libcalico.kernel.nft import LibNft, NftOps, NftProcess
from libcalico.kernel.nft_reconciler import NftReconciler
from libcalico.testing.netns import Namespace

CHAINS, ELEMENTS, ROUNDS = 1000, 10_000, 30


def _chain(number: int, salt: int) -> Chain:
    return Chain(f"c{number}", tuple(Rule(f"ip saddr 10.{salt % 250}.{n}.1 counter accept") for n in range(5)))


async def _measure(ops: NftOps) -> tuple[float, float]:
    """(ms to replace one of many chains, ms to add one element to a big set), medians."""
    nft = NftReconciler(ops)
    for number in range(CHAINS):
        nft.want_chain(f"c{number}", _chain(number, 0))
    nft.want_set("s", NftSet("s", "ipv4_addr"))
    nft.want_elements("s", [Element(f"10.1.{n >> 8}.{n & 255}") for n in range(ELEMENTS)], [], replace=True)
    assert (await nft.reconcile(0)).ok
    chain_ms, element_ms = [], []
    for salt in range(1, ROUNDS + 1):
        nft.want_chain("c500", _chain(500, salt))
        began = time.perf_counter()
        assert (await nft.reconcile(0)).updated == 1
        chain_ms.append((time.perf_counter() - began) * 1e3)
        nft.want_elements("s", [Element(f"10.9.9.{salt}")], [], replace=False)
        began = time.perf_counter()
        assert (await nft.reconcile(0)).updated == 1
        element_ms.append((time.perf_counter() - began) * 1e3)
    ops.close()
    return statistics.median(chain_ms), statistics.median(element_ms)


def main() -> None:
    """Print both, and the ratio."""
    found = {}
    for name, kind in (("libnftables", LibNft), ("nft -f", NftProcess)):
        with Namespace("bench") as ns:
            found[name] = ns.inside(lambda kind=kind: _measure(kind()))  # type: ignore[misc]
    ours, theirs = found["libnftables"], found["nft -f"]
    print(f"replace one of {CHAINS} chains:  {ours[0]:6.2f} ms, nft -f {theirs[0]:6.2f} ms, {theirs[0] / ours[0]:.1f}x")
    print(f"add to a set of {ELEMENTS}:   {ours[1]:6.2f} ms, nft -f {theirs[1]:6.2f} ms, {theirs[1] / ours[1]:.1f}x")


if __name__ == "__main__":
    main()
