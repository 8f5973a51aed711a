"""AdjRibIn: what each peer told, after import policy, and as much of it from before as a change of policy needs.

Nearly all routes pass import policy untouched, so only those that it rejected or changed are kept a second time.
A change of policy is then applied to what is held (soft reconfiguration): no peer is asked, no session touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from birdpy.rib.path import Attributes, Path
from libcalico.net import Prefix
from libcalico.reconcile import Index

Key = tuple[str, int]  # peer, path id
_NONE: Mapping[Key, Path] = {}


class AdjRibIn:
    """All peers' paths by prefix."""

    def __init__(self) -> None:
        self.accepted: dict[Prefix, dict[Key, Path]] = {}
        self.prefixes_of: Index[str, Prefix] = Index()
        self._raw: dict[str, dict[tuple[Prefix, int], Attributes]] = {}
        self._rejected: dict[str, set[tuple[Prefix, int]]] = {}
        self._count: dict[str, int] = {}

    def paths(self, prefix: Prefix) -> Mapping[Key, Path]:
        return self.accepted.get(prefix, _NONE)

    def count(self, peer: str) -> int:
        """How many paths of this peer were accepted."""
        return self._count.get(peer, 0)

    def rejected(self, peer: str) -> int:
        """How many of this peer's paths import policy rejected."""
        return len(self._rejected.get(peer, ()))

    def held(self, peer: str) -> int:
        """How many of this peer's paths take memory, at most."""
        return self.count(peer) + len(self._raw.get(peer, ()))

    def knows(self, peer: str, prefix: Prefix, path_id: int) -> bool:
        return (peer, path_id) in self.paths(prefix) or (prefix, path_id) in self._raw.get(peer, ())

    def put(self, prefix: Prefix, path: Path) -> Path | None:
        """Hold a path; returns the former one."""
        key = (path.peer, path.path_id)
        paths = self.accepted.get(prefix)
        if paths is None:
            self.accepted[prefix], old = {key: path}, None
        else:
            old = paths.get(key)
            paths[key] = path
        if old is None:
            self.prefixes_of.add(path.peer, prefix)
            self._count[path.peer] = self._count.get(path.peer, 0) + 1
        return old

    def remove(self, prefix: Prefix, key: Key) -> Path | None:
        """Forget a path; returns it."""
        paths = self.accepted.get(prefix)
        path = paths.pop(key, None) if paths is not None else None
        if paths is None or path is None:
            return None
        if not paths or not any(k[0] == key[0] for k in paths):
            self.prefixes_of.remove(key[0], prefix)
        left = self.count(key[0]) - 1
        if left:
            self._count[key[0]] = left
        else:
            self._count.pop(key[0], None)
        if not paths:
            del self.accepted[prefix]
        return path

    def mark_stale(self, peer: str) -> None:
        """Its session ended; what it told may be told again.  Policy does not change what is stale."""
        self.forget_raw(peer)
        stale: dict[int, tuple[Path, Path]] = {}  # what prefixes shared they go on to share
        for prefix in self.prefixes_of.of(peer):
            paths = self.accepted[prefix]
            for key in [k for k in paths if k[0] == peer]:
                path = paths[key]
                if id(path) not in stale:
                    stale[id(path)] = path, msgspec.structs.replace(path, stale=True)
                paths[key] = stale[id(path)][1]

    def rename(self, old: str, new: str) -> None:
        """The peer has another name."""
        for prefix, path in list(self.items_of(old)):
            self.remove(prefix, (old, path.path_id))
            self.put(prefix, msgspec.structs.replace(path, peer=new))
        if old in self._raw:
            self._raw[new] = self._raw.pop(old)
        if old in self._rejected:
            self._rejected[new] = self._rejected.pop(old)

    # --- as it was told ---------------------------------------------------------------------------------------------

    def keep_raw(self, peer: str, prefix: Prefix, path_id: int, told: Attributes, accepted: Attributes | None) -> None:
        """Remember what was told, if import policy made something else of it."""
        if accepted is told or accepted == told:
            if peer in self._raw:
                self.drop_raw(peer, prefix, path_id)
        else:
            key = (prefix, path_id)
            self._raw.setdefault(peer, {})[key] = told
            if accepted is None:
                self._rejected.setdefault(peer, set()).add(key)
            else:
                self._rejected.get(peer, set()).discard(key)

    def drop_raw(self, peer: str, prefix: Prefix, path_id: int) -> None:
        raw = self._raw.get(peer)
        if raw is not None and raw.pop((prefix, path_id), None) is not None:
            self._rejected.get(peer, set()).discard((prefix, path_id))
            if not raw:
                self.forget_raw(peer)

    def forget_raw(self, peer: str) -> None:
        self._raw.pop(peer, None)
        self._rejected.pop(peer, None)

    def told(self, peer: str) -> Iterator[tuple[Prefix, int, Attributes]]:
        """All that a peer told and that is not stale, as it told it."""
        raw = dict(self._raw.get(peer, {}))
        for prefix in list(self.prefixes_of.of(peer)):
            for (name, path_id), path in list(self.accepted[prefix].items()):
                if name == peer and not path.stale:
                    yield prefix, path_id, raw.pop((prefix, path_id), path.attributes)
        for (prefix, path_id), attributes in raw.items():
            yield prefix, path_id, attributes

    @property
    def empty(self) -> bool:
        return not (self.accepted or len(self.prefixes_of) or self._raw or self._count)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self.accepted)

    def items_of(self, peer: str) -> Iterable[tuple[Prefix, Path]]:
        """The accepted paths of one peer."""
        for prefix in list(self.prefixes_of.of(peer)):
            for key, path in list(self.accepted[prefix].items()):
                if key[0] == peer:
                    yield prefix, path
