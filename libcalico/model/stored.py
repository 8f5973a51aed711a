"""Stored values: JSON text in the datastore, read and written without a loss.

Light on purpose: the CNI plugin starts once per pod and needs no more than this.
"""

from __future__ import annotations

import json
from typing import Any


def encode(value: object) -> bytes:
    """JSON without blanks, in UTF-8 as Go writes it.

    >>> encode({"a": "ä"}).decode()
    '{"a":"ä"}'
    """
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair is legal in JSON, and has no UTF-8
        return json.dumps(value, separators=(",", ":")).encode()


def parse_object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object that a value holds; None: it holds none.

    >>> parse_object(b'{"a": 1}'), parse_object(b"[]"), parse_object(b"{")
    ({'a': 1}, None, None)
    """
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
