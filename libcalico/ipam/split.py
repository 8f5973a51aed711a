"""Split a pool into smaller ones of equal size; pure.

Source: calicoctl/calicoctl/commands/ipam/split.go.
"""

from __future__ import annotations

import copy
from typing import Any

from libcalico.net import IPV4, Prefix

Document = dict[str, Any]
_OF_THE_OLD = ("uid", "resourceVersion", "generation", "selfLink", "creationTimestamp", "generateName")
_LONGEST_NAME = 253


def split_pool(pool: Document, parts: int) -> list[Document]:
    """The pools that take the place of ``pool``: its spec and labels, names ``split-<name>-<number>``, enabled.

    Raises:
        ValueError: ``parts`` is no power of two from 2 on, or the pieces would be smaller than a block.
    """
    if parts < 2 or parts & (parts - 1):
        raise ValueError(f"number to split CIDR into is not a valid power of 2: {parts}")
    spec = pool["spec"]
    prefix = Prefix.parse(spec["cidr"], strict=False)
    block_length = spec.get("blockSize") or (26 if prefix.family is IPV4 else 122)
    length = prefix.length + parts.bit_length() - 1
    if length > block_length:
        raise ValueError(
            f"the CIDR {prefix} is not large enough to be split into {parts} parts: a block is a /{block_length}"
        )
    made = []
    for number in range(parts):
        document = copy.deepcopy(pool)
        metadata = {name: value for name, value in document["metadata"].items() if name not in _OF_THE_OLD}
        tail = f"-{number}"
        metadata["name"] = f"split-{pool['metadata']['name']}"[: _LONGEST_NAME - len(tail)] + tail
        part = Prefix(prefix.family, prefix.value + (number << (prefix.family.bits - length)), length)
        document["metadata"], document["spec"] = metadata, {**spec, "cidr": str(part), "disabled": False}
        made.append(document)
    return made
