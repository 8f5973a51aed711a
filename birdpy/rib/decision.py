"""The decision process (RFC 4271 section 9.1.2), by elimination over the whole set.

MED compares only paths of one neighbour AS, so pairwise comparison can run in circles; eliminating over the set gives
the same winner whatever the order of arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from birdpy.rib.path import DEFAULT_LOCAL_PREF, Path


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A path with what the decision must know of its peer and next hop; ``igp_metric`` None: unreachable."""

    path: Path
    ebgp: bool
    router_id: int
    peer_address: int
    igp_metric: int | None


class Decision(msgspec.Struct, frozen=True):
    """The best path, those that are as good for forwarding (the best first), and why each of the others is not."""

    best: Path | None
    multipath: tuple[Path, ...]
    why: dict[tuple[str, int], str]


_Step = tuple[str, Callable[[Candidate], int]]
_BEFORE_MED: tuple[_Step, ...] = (
    ("lower local preference", lambda c: -_local_pref(c)),
    ("longer AS path", lambda c: c.path.attributes.as_path_length),
    ("worse origin", lambda c: c.path.attributes.origin),
)
_AFTER_MED: tuple[_Step, ...] = (
    ("internal, and an external one exists", lambda c: not c.ebgp),
    ("farther next hop", lambda c: c.igp_metric or 0),
)
_TIE_BREAKS: tuple[_Step, ...] = (
    ("higher router id", lambda c: _originator(c.path, c.router_id)),
    ("longer cluster list", lambda c: len(c.path.attributes.cluster_list)),
    ("higher peer address", lambda c: c.peer_address),
    ("higher path id", lambda c: c.path.path_id),
)


def decide(candidates: Iterable[Candidate]) -> Decision:
    """Choose among the paths to one prefix."""
    why: dict[tuple[str, int], str] = {}
    left: list[Candidate] = []
    for candidate in candidates:
        if candidate.igp_metric is None:
            why[_key(candidate)] = "next hop is unreachable"
        else:
            left.append(candidate)
    if len(left) == 1:  # the usual case
        return Decision(left[0].path, (left[0].path,), why)
    for reason, measure in _BEFORE_MED:
        left = _keep_least(left, measure, reason, why)
    left = _by_med(left, why)
    for reason, measure in _AFTER_MED:
        left = _keep_least(left, measure, reason, why)
    equal = left
    for reason, measure in _TIE_BREAKS:
        left = _keep_least(left, measure, f"as good, but {reason}", why)
    if not left:
        return Decision(None, (), why)
    best = left[0].path
    others = sorted((c.path for c in equal if c.path is not best), key=lambda p: (p.peer, p.path_id))
    return Decision(best, (best, *others), why)


def _keep_least(
    left: list[Candidate], measure: Callable[[Candidate], int], reason: str, why: dict[tuple[str, int], str]
) -> list[Candidate]:
    if len(left) < 2:
        return left
    least = min(map(measure, left))
    kept = []
    for candidate in left:
        if measure(candidate) == least:
            kept.append(candidate)
        else:
            why[_key(candidate)] = reason
    return kept


def _by_med(left: list[Candidate], why: dict[tuple[str, int], str]) -> list[Candidate]:
    """RFC 4271 section 9.1.2.2 c: an absent MED is the lowest."""
    least: dict[int, int] = {}
    for candidate in left:
        neighbour, med = candidate.path.attributes.neighbour_as, candidate.path.attributes.med or 0
        least[neighbour] = min(least.get(neighbour, med), med)
    kept = []
    for candidate in left:
        if (candidate.path.attributes.med or 0) == least[candidate.path.attributes.neighbour_as]:
            kept.append(candidate)
        else:
            why[_key(candidate)] = "higher MED of the same neighbour AS"
    return kept


def _key(candidate: Candidate) -> tuple[str, int]:
    return candidate.path.peer, candidate.path.path_id


def _local_pref(candidate: Candidate) -> int:
    local_pref = candidate.path.attributes.local_pref
    return DEFAULT_LOCAL_PREF if local_pref is None else local_pref


def _originator(path: Path, router_id: int) -> int:
    """RFC 4456 section 9: ORIGINATOR_ID stands in for the router id."""
    text = path.attributes.originator_id
    if not text:
        return router_id
    a, b, c, d = (int(part) for part in text.split("."))
    return a << 24 | b << 16 | c << 8 | d
