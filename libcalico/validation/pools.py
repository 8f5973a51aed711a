"""IPPool, IPReservation, IPAMConfiguration and BlockAffinity.

Source: api/pkg/apis/projectcalico/v3/{ippool,ipreservation,ipamconfig,blockaffinity}.go, clientv3/ippool.go,
validator.go.
"""

from __future__ import annotations

from libcalico.net import IPV4, IPV6, Prefix
from libcalico.validation.problem import ABSENT
from libcalico.validation.shape import Anything, Flag, ListOf, Obj, Tell, Text, View, Whole, always, given, need
from libcalico.validation.text import network, parse_net, selector

DEFAULT_BLOCK_SIZE = {IPV4: 26, IPV6: 122}
_BLOCK_SIZES = {IPV4: (20, 32), IPV6: (116, 128)}
_LINK_LOCAL = {IPV4: Prefix.parse("169.254.0.0/16"), IPV6: Prefix.parse("fe80::/10")}
_MODES = Text(one_of=("Never", "Always", "CrossSubnet"))


def pool_prefix(view: View) -> Prefix | None:
    """The pool's network, if its ``cidr`` is one."""
    found = parse_net(view.get("cidr", ""), bare=False)
    return found[1] if found is not None else None


def _not_link_local(view: View, tell: Tell) -> None:
    prefix = pool_prefix(view)
    if prefix is not None and prefix.overlaps(_LINK_LOCAL[prefix.family]):
        tell("cidr", view["cidr"], f"must not overlap with the link local range {_LINK_LOCAL[prefix.family]}")


def _blocks_fit(view: View, tell: Tell) -> None:
    prefix = pool_prefix(view)
    if prefix is None:
        return
    size = view.get("blockSize") or DEFAULT_BLOCK_SIZE[prefix.family]
    least, most = _BLOCK_SIZES[prefix.family]
    if not least <= size <= most:
        tell("blockSize", size, f"must be from {least} to {most} for an IPv{prefix.family.value} pool")
    if prefix.length > size and "disabled" not in view:
        tell("cidr", view["cidr"], f"must not be smaller than a block, which is a /{size}")


def _one_tunnel(view: View, tell: Tell) -> None:
    ipip, vxlan = (view.get(field, "Never") != "Never" for field in ("ipipMode", "vxlanMode"))
    prefix = pool_prefix(view)
    if ipip and vxlan:
        tell("vxlanMode", view["vxlanMode"], "must be Never while ipipMode is not")
    if ipip and prefix is not None and prefix.family is IPV6:
        tell("ipipMode", view["ipipMode"], "must be Never for an IPv6 pool")
    if (ipip or vxlan) and "LoadBalancer" in view.get("allowedUses", []):
        tell("ipipMode" if ipip else "vxlanMode", ABSENT, "must be Never for a LoadBalancer pool")


def _uses_agree(view: View, tell: Tell) -> None:
    uses = view.get("allowedUses", [])
    if "LoadBalancer" in uses:
        if "Workload" in uses or "Tunnel" in uses:
            tell("allowedUses", uses, "LoadBalancer must not be combined with Workload or Tunnel")
        if "disableBGPExport" in view:
            tell("disableBGPExport", True, "must be false for a LoadBalancer pool")
        if view.get("nodeSelector", "all()") != "all()":
            tell("nodeSelector", view["nodeSelector"], "must be all() for a LoadBalancer pool")
    if "Tunnel" in uses and "namespaceSelector" in view:
        tell("namespaceSelector", view["namespaceSelector"], "must not be set for a pool with allowed use Tunnel")


def _no_global(view: View, tell: Tell) -> None:
    for field in ("nodeSelector", "namespaceSelector"):
        if "global(" in view.get(field, ""):
            tell(field, view[field], "must not have global()")


IP_POOL = Obj(
    {
        "cidr": need(Text(network(bare=False), most=48)),
        "blockSize": Whole(0, 128),
        "vxlanMode": _MODES,
        "ipipMode": _MODES,
        "natOutgoing": Flag(),
        "disabled": Flag(),
        "disableBGPExport": Flag(),
        "nodeSelector": Text(selector, most=1024),
        "namespaceSelector": Text(selector, most=1024),
        "allowedUses": ListOf(Text(one_of=("Workload", "Tunnel", "LoadBalancer")), most=10),
        "assignmentMode": given(Text(one_of=("Automatic", "Manual"))),
    },
    _not_link_local,
    _blocks_fit,
    _one_tunnel,
    _uses_agree,
    _no_global,
)
IP_POOL_STATUS = Obj({"conditions": Anything(what="list")})

# Calico's newest schema wants a length; its client, tests and manuals take an address too.
IP_RESERVATION = Obj({"reservedCIDRs": ListOf(Text(network(masked=False)))})

IPAM_CONFIGURATION = Obj(
    {
        "strictAffinity": Flag(),
        "autoAllocateBlocks": Flag(),
        "maxBlocksPerHost": Whole(0, 1_000_000),
        "kubeVirtVMAddressPersistence": given(Text(one_of=("Enabled", "Disabled"))),
        "ipCooldownSeconds": Whole(0, 1200),
    }
)


def _not_deleted(view: View, tell: Tell) -> None:
    if "deleted" in view:
        tell("deleted", True, "must not be true")


BLOCK_AFFINITY = Obj(
    {
        "state": Text(one_of=("confirmed", "pending", "pendingDeletion")),
        "node": Text(),
        "type": Text(),
        "cidr": always(Text(network(bare=False, masked=False)), ""),
        "deleted": Flag(),
    },
    _not_deleted,
)
