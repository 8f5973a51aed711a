"""Documents to judge: builds whole ones around a spec, and says in one line what is wrong with them."""

from __future__ import annotations

from typing import Any

from libcalico.model.keys import KINDS
from libcalico.validation import validate

Spec = dict[str, Any]


def document(kind: str, spec: Any, name: str = "", **metadata: Any) -> dict[str, Any]:
    """A whole document; kinds with one object only are called ``default``, others ``x``."""
    only = {"ClusterInformation", "IPAMConfiguration", "KubeControllersConfiguration", "BGPConfiguration"}
    named = name or ("default" if kind in only else "x")
    meta: dict[str, Any] = {"name": named, **metadata}
    if KINDS[kind][1]:
        meta.setdefault("namespace", "default")
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": meta, "spec": spec}


def problems(kind: str, spec: Any, name: str = "", **metadata: Any) -> list[str]:
    """Each problem as its line."""
    return [str(problem) for problem in validate(kind, document(kind, spec, name, **metadata))]


def accepted(kind: str, spec: Any, name: str = "", **metadata: Any) -> None:
    """Fail unless there is no problem."""
    assert problems(kind, spec, name, **metadata) == []


def refused(kind: str, spec: Any, path: str, name: str = "", **metadata: Any) -> str:
    """Fail unless there is a problem at ``path`` (and nothing else); return its line."""
    found = problems(kind, spec, name, **metadata)
    assert found, "nothing was refused"
    places = {line.partition(": ")[0] for line in found}
    assert path in places, found
    return next(line for line in found if line.startswith(f"{path}: "))
