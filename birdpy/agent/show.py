"""What ``birdpy show …`` answers: data from the daemon, tables for people.  birdc's habits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from birdpy.rib.path import Attributes, Path
from libcalico.net import Addr, Prefix
from libcalico.runtime.control import ControlError
from libcalico.runtime.version import own_version

if TYPE_CHECKING:
    from birdpy.agent.daemon import Daemon

_TIME = "%Y-%m-%d %H:%M:%S"
Command = Callable[[dict[str, Any]], Awaitable[Any]]


def commands(daemon: Daemon) -> dict[str, Command]:
    """The handlers of the control socket."""

    async def status(_: dict[str, Any]) -> Any:
        config = daemon.speaker.config
        return {
            "node": config.node,
            "version": own_version(),
            "ipv4": config.ipv4_address,
            "ipv6": config.ipv6_address,
            "startedAt": daemon.started_at.strftime(_TIME),
            "configuredAt": daemon.configured_at.strftime(_TIME),
            "routerId": config.router_id,
            "asNumber": config.as_number,
            "sessions": len(daemon.sessions),
            "sessionsUp": sum(1 for s in daemon.sessions.values() if s.state == "up"),
            "routes": len(daemon.speaker.fib),
            "exabgpPid": daemon.process.pid,
            "exabgpStarts": daemon.process.starts,
            "exabgpLastExit": daemon.process.last_exit,
            "configurationError": daemon.config_error,
            "eventsNotUnderstood": daemon.bad_lines,
        }

    async def protocols(_: dict[str, Any]) -> Any:
        found = []
        for name, session in sorted(daemon.sessions.items()):
            peer = daemon.speaker.peers[name]
            found.append(
                {
                    "name": name,
                    "proto": "BGP",
                    "state": session.state,
                    "since": session.since.strftime(_TIME) if session.since else "",
                    "info": "Established" if session.state == "up" else session.fsm,
                    "neighbor": str(session.address),
                    "neighborAs": peer.config.as_number,
                    "localAs": peer.config.local_as,
                    "kind": peer.config.kind,
                    "routerId": session.opened.router_id,
                    "received": daemon.speaker.adj_rib_in.count(name),
                    "exported": len(daemon.speaker.adj_rib_out[name]),
                    "refused": peer.refused,
                    "maxPrefixes": peer.config.max_prefixes,
                    "holdTime": peer.config.hold_time_s,
                    "restartTime": session.opened.restart_time_s or 0,
                    "authenticated": peer.config.authenticated,
                    "rrClient": peer.config.rr_client,
                    "lastError": session.last_error,
                    "source": peer.config.source,
                }
            )
        return found

    async def route(args: dict[str, Any]) -> Any:
        try:
            return _routes(daemon, args)
        except ValueError as why:
            raise ControlError(str(why)) from None

    return {"status": status, "protocols": protocols, "route": route}


def _routes(daemon: Daemon, args: dict[str, Any]) -> list[dict[str, Any]]:
    speaker = daemon.speaker
    export, protocol = args.get("export"), args.get("protocol")
    for name in (export, protocol):
        if name and name not in speaker.peers:
            raise ValueError(f"there is no protocol {name}")
    if export:
        return [_row(prefix, attributes, best=True) for prefix, attributes in speaker.adj_rib_out[export].items()]
    prefixes = speaker.prefixes()
    if args.get("for"):
        prefixes = _longest_match(prefixes, str(args["for"]))
    rows: list[dict[str, Any]] = []
    for prefix in prefixes:
        local = speaker.local_route(prefix)
        if (static := speaker.external.get(prefix)) is not None and not protocol:
            entry = speaker.fib.get(prefix)
            used = {hop.gateway: hop.dev for hop in entry.hops} if entry is not None else {}
            for hop in static.next_hops:
                row = {"prefix": str(prefix), "from": "external", "nextHop": str(hop), "gateway": str(hop)}
                row |= {"dev": used.get(hop, static.device), "source": static.source}
                rows.append({**row, "best": hop in used})
        if local is not None and not protocol:
            rows.append({"prefix": str(prefix), "from": local.kind.value, "dev": local.interface, "best": True})
        decision = speaker.loc_rib.get(prefix)
        for path in speaker.paths(prefix):
            if protocol and path.peer != protocol:
                continue
            best = local is None and decision is not None and path in decision.multipath
            row = _row(prefix, path.attributes, best=best, path=path)
            resolution = speaker.resolution_of(path)
            if resolution is not None:
                row |= {"dev": resolution.dev, "gateway": str(resolution.gateway or path.attributes.next_hop)}
            if decision is not None:
                row["why"] = decision.why.get((path.peer, path.path_id), "")
            rows.append(row)
    return rows


def _longest_match(prefixes: list[Prefix], text: str) -> list[Prefix]:
    wanted = Prefix.parse(text, strict=False) if "/" in text else Addr.parse(text)
    matching = [p for p in prefixes if p.contains(wanted)]
    longest = max((p.length for p in matching), default=0)
    return [p for p in matching if p.length == longest]


def _row(prefix: Prefix, a: Attributes, *, best: bool, path: Path | None = None) -> dict[str, Any]:
    return {
        "prefix": str(prefix),
        "from": path.peer if path else "",
        "nextHop": str(a.next_hop) if a.next_hop else "self",
        "best": best,
        "stale": path.stale if path else False,
        "asPath": list(a.asns),
        "origin": a.origin.name,
        "localPref": a.local_pref,
        "med": a.med,
        "communities": [*a.communities, *a.large_communities],
        "originatorId": a.originator_id,
        "clusterList": list(a.cluster_list),
    }


# --- for people -----------------------------------------------------------------------------------------------------


def print_status(result: dict[str, Any]) -> None:
    """``birdpy show status``."""
    print(f"birdpy {result['version']}, up since {result['startedAt']}, last configured {result['configuredAt']} UTC")
    print(f"node {result['node']}  router id {result['routerId']}  AS {result['asNumber']}")
    print(f"{result['sessionsUp']} of {result['sessions']} sessions up")
    print(f"{result['routes']} routes for the kernel")
    print(
        f"ExaBGP pid {result['exabgpPid']}, started {result['exabgpStarts']} times {result['exabgpLastExit']}".rstrip()
    )
    if result["configurationError"]:
        print(f"the last configuration was refused: {result['configurationError']}")


def print_protocols(result: list[dict[str, Any]], *, every: bool = False) -> None:
    """``birdpy show protocols [all]``."""
    rows: list[tuple[str, ...]] = [("Name", "Proto", "State", "Since", "Info")]
    rows += [(p["name"], p["proto"], p["state"], p["since"], p["info"]) for p in result]
    if not every:
        print_table(rows)
        return
    for p in result:
        print(f"{p['name']}  {p['proto']}  {p['state']}  {p['since']}  {p['info']}")
        router_id = p["routerId"] or "?"
        print(f"    Neighbor {p['neighbor']} AS {p['neighborAs']}, local AS {p['localAs']}, router id {router_id}")
        print(f"    Routes: {p['received']} received, {p['exported']} exported")
        extras = [w for w, on in (("TCP MD5", p["authenticated"]), ("route reflector client", p["rrClient"])) if on]
        restart = f", graceful restart {p['restartTime']} s" if p["restartTime"] else ""
        print(f"    Hold time {p['holdTime']} s{restart}{''.join(f', {word}' for word in extras)}")
        if p["refused"]:
            print(f"    Over the limit of {p['maxPrefixes']} prefixes: {p['refused']} refused")
        print(f"    From: {p['source'] or p['kind']}")
        if p["lastError"]:
            print(f"    Last error: {p['lastError']}")


def print_neighbors(result: list[dict[str, Any]]) -> None:
    """``birdpy show neighbors``: one line for each, as ``show bgp summary`` of other routers."""
    rows: list[tuple[str, ...]] = [("Neighbor", "AS", "Name", "State", "Since", "Received", "Exported")]
    for p in result:
        rows.append(
            (
                p["neighbor"], str(p["neighborAs"]), p["name"], p["info"], p["since"], str(p["received"]),
                str(p["exported"]),
            )
        )  # fmt: skip
    print_table(rows)


def print_routes(result: list[dict[str, Any]], *, every: bool = False) -> None:
    """``birdpy show route [all]``."""
    for r in result:
        star = "*" if r["best"] else " "
        where = f"via {r['nextHop']}" if "nextHop" in r else f"{r['from']} {r.get('dev', '')}".rstrip()
        print(f"{r['prefix']:<24}{star} {where} [{r['from']}]" + (" stale" if r.get("stale") else ""))
        if every and "source" in r:
            print(f"    from {r['source']}" + ("" if r["best"] else "; not usable now"))
        elif every and "nextHop" in r:
            print(f"    as path: {' '.join(map(str, r['asPath'])) or '(empty)'}  origin: {r['origin']}")
            print(
                f"    local pref: {r['localPref']}  med: {r['med']}  communities: {' '.join(r['communities']) or '-'}"
            )
            if r["originatorId"] or r["clusterList"]:
                print(f"    originator: {r['originatorId'] or '-'}  cluster list: {' '.join(r['clusterList']) or '-'}")
            if r.get("why"):
                print(f"    not chosen: {r['why']}")


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as they need to be."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
