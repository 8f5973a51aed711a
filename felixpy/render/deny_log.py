"""DenyLog: before every rule that denies, one that tells of it, where the operator has asked for that.

The rules go to an nflog group, at most so many packets a second from each, and the log prefix carries what the denying
rule's comment says: policy and rule.  So a packet in the log is understood without asking anybody.  While it is off the
ruleset is the same, byte for byte, as if this did not exist.

    … tcp dport 22 limit rate 10/second burst 5 packets log prefix "deny ingress …[0]" snaplen 96 group 3233
    … tcp dport 22 counter drop

The rate is per rule and not one for all: a flood against one rule must not hide what another denies.
Source: nft(8), LOG STATEMENT; NF_LOG_PREFIXLEN in linux/netfilter/nf_log.h.
"""

from __future__ import annotations

import re

from libcalico.dataplane.ruleset import Chain, Rule, plain_text

GROUP = 3233  # Felix uses 1 and 2
PREFIX_WORD = "deny"
PREFIX_MAX_BYTES = 127  # 128 with its NUL
_SNAPLEN_BYTES = 96  # IPv6 and TCP with options; payload is nobody's business
_BURST = 5
_PROBE = "felixpy-probe"
_DENIES = ("counter drop", "counter reject")
# names of chains, see names.py: what judges packets to an endpoint, and from one
_INGRESS = re.compile(r"(all-)?(pi|pri|ti|tw|fh[a-z]*)(-|\Z)|to-wl-|input-overlay")
_EGRESS = re.compile(r"(all-)?(po|pro|te|fw|th[a-z]*)(-|\Z)|from-wl-|wl-")


def with_deny_log(chain: Chain, rate: str) -> Chain:
    """The chain with a logging rule before each that denies.

    Args:
        chain: As it was rendered.
        rate: ``10/second``, per rule; empty: the chain stays as it is.
    """
    if not rate or not any(rule.text.endswith(_DENIES) for rule in chain.rules):
        return chain
    rules: list[Rule] = []
    for rule in chain.rules:
        match, verb = _split(rule.text)
        if verb:
            statement = log_statement(rate, log_prefix(chain.name, rule.comment))
            rules.append(Rule(match + statement, f"log of {rule.comment}"))
        rules.append(rule)
    return Chain(chain.name, tuple(rules), chain.hook)


def probe_script() -> str:
    """What nft must take, as a dry run, before any of it is put into real chains.

    A kernel that cannot log to a group would refuse every chain that denies, and what is refused stands closed.
    """
    statement = log_statement("1/second", f"{PREFIX_WORD} - probe")
    return f"add table inet {_PROBE}\nadd chain inet {_PROBE} probe\nadd rule inet {_PROBE} probe {statement}\n"


def log_statement(rate: str, prefix: str) -> str:
    """The statement that logs to our group."""
    limit = f"limit rate {rate} burst {_BURST} packets"
    return f'{limit} log prefix "{prefix}" snaplen {_SNAPLEN_BYTES} group {GROUP}'


def log_prefix(chain: str, comment: str) -> str:
    """``deny ingress GlobalNetworkPolicy(x) ingress[3]``, cut in the middle where the kernel has no room.

    >>> log_prefix("ti-default-0123456789", "end of tier default")
    'deny ingress end of tier default'
    """
    direction = "ingress" if _INGRESS.match(chain) else "egress" if _EGRESS.match(chain) else "-"
    head = f"{PREFIX_WORD} {direction} "
    # a name may have 253 characters: what kind it is and which rule must both be kept
    room, text = PREFIX_MAX_BYTES - len(head), plain_text(comment)
    if len(text) > room:
        tail = text[-(room // 2) :]
        text = f"{text[: room - len(tail) - 2]}..{tail}"
    return head + text


def _split(text: str) -> tuple[str, str]:
    """A rule's matches and what denies; the latter is empty for a rule that denies nothing."""
    for verb in _DENIES:
        if text.endswith(verb):
            return text.removesuffix(verb), verb
    return text, ""
