"""Calico's selector language: parse once, evaluate often; the canonical text is the identity.

Source: libcalico-go/lib/selector (tokenizer, parser); Calico documentation "Selectors".
"""

from libcalico.selector.ast import ALL, Node, Selector
from libcalico.selector.parser import SelectorError, parse_selector

__all__ = ["ALL", "Node", "Selector", "SelectorError", "parse_selector"]
