"""An nftables table as a value: chains, rules, sets, maps.

Text inside (rule statements, elements) is nft syntax **made by our own renderers from typed values**; nothing
from the datastore may reach it unescaped.  The constructors check what can be checked cheaply: names are
identifiers, statements and elements hold neither newline nor semicolon, comments are short plain text.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

COMMENT_MAX_BYTES = 127  # libnftnl: NFTNL_UDATA_COMMENT_MAXLEN 128 with its NUL
NAME_MAX_BYTES = 127

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*\Z")
_SAFE_TEXT = re.compile(r"[^\n\r;\0#]*\Z")
_COMMENT_UNSAFE = re.compile(r"[^A-Za-z0-9 _./:,=()@+*<>|&![\]-]")


def comment_text(text: str) -> str:
    """Make any text fit for an nft comment: unsafe characters become ``?``, and it is cut to size.

    >>> comment_text('a"; flush ruleset')
    'a?? flush ruleset'
    """
    return plain_text(text)[:COMMENT_MAX_BYTES]


def plain_text(text: str) -> str:
    """Any text with unsafe characters made ``?``: what may stand between quotes in nft's language."""
    return _COMMENT_UNSAFE.sub("?", text)


def check_name(name: str) -> str:
    """Return ``name``, or raise ValueError when nft would not take it as an identifier."""
    if not _NAME.match(name) or len(name) > NAME_MAX_BYTES:
        raise ValueError(f"not an nft name: {name!r}")
    return name


class Rule(msgspec.Struct, frozen=True, gc=False):
    """One rule: matches and verdict as nft text, and a comment for people (policy, rule number).

    The comment that reaches the kernel begins with ``digest`` so that a new process can tell, without having
    written it, whether the rule in the kernel is the one it wants.
    """

    text: str
    comment: str = ""

    def __post_init__(self) -> None:
        if not _SAFE_TEXT.match(self.text):
            raise ValueError(f"unsafe rule text: {self.text!r}")

    @property
    def digest(self) -> str:
        """8 hex digits over text and comment."""
        return hashlib.blake2s(f"{self.text}\0{self.comment}".encode(), digest_size=4).hexdigest()

    @property
    def kernel_comment(self) -> str:
        """What stands in the kernel: ``<digest> <comment>``."""
        return comment_text(f"{self.digest} {self.comment}".rstrip())


class Hook(msgspec.Struct, frozen=True, gc=False):
    """Makes a chain a base chain: ``type filter hook forward priority filter; policy accept``."""

    type: str  # filter | nat | route
    hook: str  # prerouting | input | forward | output | postrouting
    priority: int
    policy: str = "accept"


class Chain(msgspec.Struct, frozen=True, gc=False):
    """A chain with all its rules, in order."""

    name: str
    rules: tuple[Rule, ...] = ()
    hook: Hook | None = None

    def __post_init__(self) -> None:
        check_name(self.name)


class NftSet(msgspec.Struct, frozen=True, gc=False):
    """A named set or verdict map; its elements are tracked apart, one by one.

    Attributes:
        name: Identifier.
        key_type: nft type of the key: ``ipv4_addr``, ``ifname``, ``ipv4_addr . inet_proto . inet_service``.
        value_type: Empty for a set; ``verdict`` or another type for a map.
        interval: Elements may be prefixes and ranges.  They must not overlap: the renderer canonicalises.
    """

    name: str
    key_type: str
    value_type: str = ""
    interval: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)


class Element(msgspec.Struct, frozen=True, order=True, gc=False):
    """An element: key (and value, for a map) in the very spelling that nft prints, so that read-back compares.

    ``10.0.0.1``, ``10.0.0.0/8``, ``fd00::/64``, ``cali0123``, ``10.0.0.1 . tcp . 80``; value ``goto fw-cali0123``.
    """

    key: str
    value: str = ""

    def __post_init__(self) -> None:
        if not _SAFE_TEXT.match(self.key) or not _SAFE_TEXT.match(self.value) or not self.key:
            raise ValueError(f"unsafe element: {self.key!r} : {self.value!r}")
