"""What must not leave the host is taken out of texts and documents: passwords, private keys, tokens.  Pure.

Two nets, one behind the other.  Values that are known to be secret (settings, files of secrets, what a configuration
names as a password) are hidden wherever they stand, also in a log line that nobody thought of.  What looks like a
secret by the name before it, or by its form, is hidden as well.  Texts are of any size and may be hostile, so no
pattern looks further than a few hundred characters, but for those that run to an end mark once.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

HIDDEN = "(hidden)"
_WORD = r"(?:pass(?:word|wd|phrase)|secret|token|private[_-]?key|pre-?shared[_-]?key|psk|api[_-]?key|credential)"
_NAME = re.compile(_WORD, re.IGNORECASE)
_QUOTED = r"""\\"(?:[^"\\\n]|\\[^"]){0,500}\\"|"(?:[^"\\\n]|\\.)*+"?|'(?:[^'\\\n]|\\.)*+'?"""
_NAMED = re.compile(
    rf"""({_WORD}[\w.-]{{0,60}}\\?["']?[ \t]{{0,20}}[=:][ \t]{{0,20}})({_QUOTED}|(?![{{\[]|\(hidden\))[^\s,}}\]]+)""",
    re.IGNORECASE,
)
_CONFIGURED = re.compile(r"""(\bpassword[ \t]{1,20})("[^"\n]{0,500}"|'[^'\n]{0,500}'|(?<=md5-password )[^\s;]+)""")
_PATTERNS = (
    (re.compile(r"-----BEGIN[^-\n]{0,60}PRIVATE KEY-----.*?(?:-----END[^-\n]{0,60}PRIVATE KEY-----|\Z)", re.DOTALL),
     HIDDEN),
    # its beginning is cut off: whatever stands before its end may be part of it
    (re.compile(r"\A.*-----END[^-\n]{0,60}PRIVATE KEY-----", re.DOTALL), HIDDEN),
    (re.compile(r"://[^\s/@:\"']{0,200}:[^\s@\"']{0,200}@"), f"://{HIDDEN}@"),
    (re.compile(r"\b(bearer|basic)[ \t]{1,20}[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\beyJ[\w-]{8,4000}\.[\w-]{2,}\.[\w-]*"), HIDDEN),
)  # fmt: skip
_PLAIN = {"true", "false", "none", "null", "yes", HIDDEN}
_SHORT = 6  # a secret of fewer characters is hidden only where it stands by itself


class Masker:
    """Hides secrets; made once all that is known has been found."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Take values that are secret wherever they stand; empty ones are nothing."""
        known = {form for secret in secrets if secret.strip() for form in _forms(secret.strip())}
        parts = []
        for form in sorted(known, key=lambda one: (-len(one), one)):
            escaped = re.escape(form)
            parts.append(escaped if len(form) >= _SHORT else rf"(?<!\w){escaped}(?!\w)")
        self._known = re.compile("|".join(parts)) if parts else None

    def text(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        for named in (_NAMED, _CONFIGURED):
            text = named.sub(_instead, text)
        return text

    def document(self, value: Any) -> Any:
        """A JSON value without secrets; a reference to one (``…Ref``) is none."""
        return self._hide(value, secret=False)

    def _hide(self, value: Any, *, secret: bool) -> Any:
        match value:
            case dict():
                named = isinstance(name := value.get("name"), str) and bool(_NAME.search(name))
                return {
                    self.text(str(key)): self._hide(
                        inner, secret=_is_secret(str(key), secret) or (named and key == "value")
                    )
                    for key, inner in value.items()
                }
            case list():
                return [self._hide(inner, secret=secret) for inner in value]
            case bool() | None:
                return value
            case str() if not secret:
                return self.text(value)
            case _:
                return HIDDEN if secret else value


def _instead(found: re.Match[str]) -> str:
    """The name, and in place of the value a word in the same quotes: JSON stays JSON."""
    value = found[2]
    quotes = '\\"' if value.startswith('\\"') else value[0] if value[0] in "\"'" else ""
    return f"{found[1]}{quotes}{HIDDEN}{quotes}"


def names_a_secret(name: str) -> bool:
    """True if what stands under such a name is a secret.

    >>> names_a_secret("ETCD_PASSWORD"), names_a_secret("ETCD_ENDPOINTS")
    (True, False)
    """
    return bool(_NAME.search(name))


def _is_secret(key: str, above: bool) -> bool:
    return not key.endswith("Ref") and (above or bool(_NAME.search(key)))


def secrets_in(text: str) -> Iterator[str]:
    """Values that a configuration file names as secret: to be hidden elsewhere as well."""
    for pattern in (_NAMED, _CONFIGURED):
        for found in pattern.finditer(text):
            value = found[2].strip("\"'")
            if (
                len(value) > 2 and not value.startswith(("/", "file:")) and value.lower() not in _PLAIN
            ):  # a path is none
                yield value


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is written in JSON, in a URL, in base64, over several lines."""
    yield secret
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield quote(secret, safe="")
    encoded = base64.b64encode(secret.encode(errors="surrogateescape")).decode()
    if len(encoded) >= 2 * _SHORT:
        yield encoded
    if "\n" in secret:
        yield from (line.strip() for line in secret.splitlines() if len(line.strip()) >= _SHORT)
