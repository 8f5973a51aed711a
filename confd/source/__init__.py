"""Sources of what templates see: keys from etcd or files, or the typed BGP view of Calico's data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from confd.context.bgp import BgpContext, wanted_secrets
from confd.context.store import BgpStore
from confd.render import base64_text, key_functions
from confd.source.addresses import SourceAddresses
from confd.source.secrets import SecretFiles
from libcalico.datastore.sync_api import SyncBatch


class Source(Protocol):
    """Holds the present state, and makes of it what templates see."""

    def take(self, batch: SyncBatch) -> bool:
        """Take updates; True if what templates see may have changed."""
        ...

    def values(self) -> dict[str, Any] | None:
        """The template variables; None: not enough is known yet (:meth:`waiting_for` says what)."""
        ...

    def waiting_for(self) -> str: ...

    def problems(self) -> Mapping[str, str]:
        """Objects that could not be used: key to reason."""
        ...

    def changed_aside(self) -> bool:
        """True if something besides the updates has changed what templates see; asked every few seconds."""
        ...

    def secrets(self) -> list[str]:
        """Texts that must not be shown."""
        ...


class CalicoSource:
    """Backend ``calico``: this node's BGP configuration."""

    def __init__(self, node: str, router_id: str, extra: Mapping[str, Any], secrets: SecretFiles) -> None:
        self._store, self._files = BgpStore(node), secrets
        self._passwords: dict[str, str] = {}
        self._addresses = SourceAddresses()
        self._router_id, self._extra = router_id, dict(extra)
        self._problems: dict[str, str] = {}

    def take(self, batch: SyncBatch) -> bool:
        changed = False
        for update in batch.updates:
            changed = self._store.on_update(update.key, update.value) or changed
        return changed

    def values(self) -> dict[str, Any] | None:
        context = BgpContext(self._store, self._router_id, self._files.read(wanted_secrets(self._store)))
        config = context.build()
        self._problems, self._passwords = context.problems, context.passwords
        if config is None:
            return None
        return {"bgp": self._addresses.fill(config), "passwords": context.passwords, **self._extra}

    def waiting_for(self) -> str:
        return f"a Node object {self._store.node} with spec.bgp"

    def problems(self) -> Mapping[str, str]:
        return self._problems

    def changed_aside(self) -> bool:
        return self._files.changed() or self._addresses.changed()

    def secrets(self) -> list[str]:
        encoded = [base64_text(p) for p in self._passwords.values()]
        return [*encoded, *self._passwords.values()]


class KeySource:
    """Backend ``etcd``: keys as they are, for ``getv`` and its kin."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}

    def take(self, batch: SyncBatch) -> bool:
        for update in batch.updates:
            if update.value is None:
                self._keys.pop(update.key, None)
            else:
                self._keys[update.key] = update.value.decode("utf-8", "replace")
        return bool(batch.updates)

    def values(self) -> dict[str, Any] | None:
        return key_functions(self._keys)

    def waiting_for(self) -> str:
        return "nothing"

    def problems(self) -> Mapping[str, str]:
        return {}

    def changed_aside(self) -> bool:
        return False

    def secrets(self) -> list[str]:
        return []


def read_files(paths: list[Path]) -> dict[str, str]:
    """Backend ``file``: YAML or JSON documents as keys ``/a/b/c``.  Raises ValueError, OSError."""
    keys: dict[str, str] = {}

    def walk(place: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{place}/{name}", inner)
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                walk(f"{place}/{index}", inner)
        else:
            keys[place] = value if isinstance(value, str) else json.dumps(value)

    for path in paths:
        try:
            walk("", yaml.safe_load(path.read_text()))
        except yaml.YAMLError as why:
            raise ValueError(f"{path}: {why}") from None
    return keys
