"""What the plugin's process and the agent say to each other over a unix socket; no imports, it starts once per pod.

    plugin ──► agent    request: the CNI_* environment and the network configuration
    agent  ──► plugin   T fields: a task in the kernel, which the plugin does, since it is root and the agent is not
    plugin ──► agent    D text: done, or F text: failed
    agent  ──► plugin   R status, text: the end, text goes to stdout; or N: do it yourself, I have changed nothing

A message is its length (4 bytes, network order), one letter, and text.  Fields are NAME=VALUE, separated by NUL.
"""

from __future__ import annotations

DEFAULT_SOCKET = "/run/calico/felixpy/cni.sock"
SOCKET_VARIABLE = "FELIXPY_CNI_SOCKET"  # another socket; empty: never ask an agent
LONGEST = 1 << 20  # bytes of a message

REQUEST, TASK, DONE, FAILED, RESULT, NOT_ME = "Q", "T", "D", "F", "R", "N"
VARIABLES = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")


class WireError(Exception):
    """The other side said nothing sensible, or left."""


def pack(letter: str, text: str) -> bytes:
    """One message.  Raises WireError when it is too long."""
    body = letter.encode() + text.encode("utf-8", "surrogateescape")
    if len(body) > LONGEST:
        raise WireError(f"a message of {len(body)} bytes is too long")
    return len(body).to_bytes(4, "big") + body


def length_of(head: bytes) -> int:
    """How many bytes follow the first four.  Raises WireError."""
    length = int.from_bytes(head, "big")
    if len(head) != 4 or not 0 < length <= LONGEST:
        raise WireError("the connection has ended")
    return length


def unpack(body: bytes) -> tuple[str, str]:
    """(letter, text)."""
    text = body.decode("utf-8", "surrogateescape")
    return text[:1], text[1:]


def fields(values: dict[str, str]) -> str:
    """Values as text; a NUL in one of them would be two."""
    return "\0".join(f"{name}={value}" for name, value in values.items() if "\0" not in value)


def read_fields(text: str) -> dict[str, str]:
    """The inverse of :func:`fields`."""
    found = {}
    for entry in text.split("\0"):
        name, _, value = entry.partition("=")
        found[name] = value
    return found
