"""What prefixes have in common, thought once: a full table has far fewer sets of attributes than prefixes.

The peers' UPDATEs carry hundreds of prefixes with the same attributes.  They share one :class:`Path` here, hence one
decision, one forwarding entry and one offer to the peers, which saves both the time to make them and the room.
"""

from __future__ import annotations

from collections.abc import Callable

from birdpy.rib.decision import Decision
from birdpy.rib.path import Attributes, FibEntry, Path
from birdpy.rib.peer_state import Offer, PeerState
from libcalico.net import IPV4, IPV6, Prefix


class Importer:
    """Import policy over one UPDATE of a peer's; it lives no longer than that."""

    def __init__(self, peer: PeerState, judge: Callable[[PeerState, Prefix, Attributes], Attributes | None]) -> None:
        self._peer, self._judge = peer, judge
        # a rule may look at the prefix; without rules only the attributes count
        self._plain = {IPV4: not peer.filters["import_v4"], IPV6: not peer.filters["import_v6"]}
        self._paths: dict[tuple[int, int], tuple[Attributes, Path | None]] = {}

    def path(self, prefix: Prefix, path_id: int, attributes: Attributes) -> Path | None:
        """The accepted path, or None."""
        if not self._plain[prefix.family]:
            return self._path(prefix, path_id, attributes)
        key = (id(attributes), path_id)
        found = self._paths.get(key)
        if found is None:  # the attributes are kept along: while they live, nothing else has their identity
            found = self._paths[key] = attributes, self._path(prefix, path_id, attributes)
        return found[1]

    def _path(self, prefix: Prefix, path_id: int, attributes: Attributes) -> Path | None:
        accepted = self._judge(self._peer, prefix, attributes)
        return None if accepted is None else Path(self._peer.config.name, accepted, path_id)


class Alike:
    """What follows from one decision, for all prefixes that share it; valid within one flush."""

    __slots__ = ("decision", "entries", "offer")

    def __init__(self, decision: Decision | None) -> None:
        self.decision = decision
        self.entries: dict[str, FibEntry | None] = {}
        """By the IP-in-IP mode of the pool that the prefix lies in."""
        self.offer: Offer | None = None
        """To the peers, for a prefix without a local route; None: not thought of yet."""
