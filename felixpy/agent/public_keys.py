"""PublicKeys: this node's WireGuard keys stand in its Node object, where other nodes read them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
from typing import Any

from felixpy.agent.dataplane import Dataplane
from felixpy.calc.wireguard import WireGuard
from libcalico.datastore.api import Datastore, Put, unchanged
from libcalico.datastore.errors import DatastoreError
from libcalico.model.keys import ResourceKey
from libcalico.model.stored import encode, parse_object
from libcalico.net import IPV4
from libcalico.runtime.logs import get_logger

_FIELDS = ("wireguardPublicKey", "wireguardPublicKeyV6")
_RETRY_S, _AUDIT_S = 5.0, 300.0
_TRIES = 20


class PublicKeys:
    """Writes ``status.wireguardPublicKey`` and ``…V6``; other fields of the Node stay as they are.

    Source: felix/daemon (NodeStatusReporter of WireGuard), api/pkg/lib/…/node.go (NodeStatus).
    """

    def __init__(self, store: Datastore, node: str, dataplane: Dataplane, wireguard: WireGuard) -> None:
        self._store, self._dataplane, self._wireguard = store, dataplane, wireguard
        self._key = ResourceKey("Node", node).path
        self._log = get_logger("wireguard")

    async def run(self) -> None:
        """Work for ever."""
        pause_s = _AUDIT_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._dataplane.keys_moved()
            known = self._dataplane.public_keys.keys() >= set(self._wireguard.names)
            pause_s = _AUDIT_S if not known or await self._publish() else _RETRY_S

    async def _publish(self) -> bool:
        """True when the Node says what is so, or cannot say anything."""
        try:
            for _ in range(_TRIES):
                row = await self._store.get(self._key)
                document = parse_object(row.value) if row is not None else None  # the graph names what is none
                if row is None or document is None:
                    return False
                changed = with_keys(document, self._wanted())
                if changed == document:
                    return True
                put = Put(row.key, encode(changed), row.lease)
                if (await self._store.txn([unchanged(row.key, row)], [put])).succeeded:
                    self._log.info("public-keys", **{name: text for name, text in self._wanted().items() if text})
                    return True
        except DatastoreError as why:
            self._log.warning("public-keys-not-written", reason=str(why), again_in_s=_RETRY_S)
        return False

    def _wanted(self) -> dict[str, str]:
        """Field of the status to key in base64; empty: none."""
        found = dict.fromkeys(_FIELDS, "")
        for family, name, _ in self._wireguard.enabled:
            key = self._dataplane.public_keys.get(name, b"")
            found[_FIELDS[0 if family is IPV4 else 1]] = base64.b64encode(key).decode()
        return found


def with_keys(node: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    """The Node with these keys in its status; a status that becomes empty is taken out.

    >>> with_keys({"spec": {}}, {"wireguardPublicKey": "a"})
    {'spec': {}, 'status': {'wireguardPublicKey': 'a'}}
    >>> with_keys({"spec": {}, "status": {"wireguardPublicKey": "a"}}, {"wireguardPublicKey": ""})
    {'spec': {}}
    """
    changed = copy.deepcopy(node)
    status = changed.setdefault("status", {}) or {}
    for name, text in keys.items():
        status.pop(name, None)
        if text:
            status[name] = text
    changed["status"] = status
    if not status:
        del changed["status"]
    return changed
