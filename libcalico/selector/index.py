"""SelectorIndex: which items match which selectors, kept up to date as either side changes.

Items (endpoints, network sets) carry labels of their own and inherit those of their parents (profiles); their own
label always wins, then the first parent that has it.  A selector that must see a certain label is only ever held
against items that carry it, and the other way round, so an update costs what it touches, not what exists.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from libcalico.reconcile.table import Index
from libcalico.selector.ast import Selector

ItemT = TypeVar("ItemT", bound=Hashable)
SelT = TypeVar("SelT", bound=Hashable)

_Posting = tuple[str, str | None]  # (label, value), or (label, None) for "has the label at all"


class _Item:
    __slots__ = ("effective", "matches", "own", "parents")

    def __init__(self) -> None:
        self.own: Mapping[str, str] = {}
        self.parents: tuple[str, ...] = ()
        self.effective: dict[str, str] = {}
        self.matches: dict[object, None] = {}


class SelectorIndex(Generic[SelT, ItemT]):
    """Calls ``on_change(selector id, item id, matches)`` for each match that begins or ends."""

    def __init__(self, on_change: Callable[[SelT, ItemT, bool], None]) -> None:
        self._on_change = on_change
        self._items: dict[ItemT, _Item] = {}
        self._postings: Index[_Posting, ItemT] = Index()
        self._parent_labels: dict[str, Mapping[str, str]] = {}
        self._children: Index[str, ItemT] = Index()
        self._selectors: dict[SelT, Selector] = {}
        self._by_label: Index[_Posting, SelT] = Index()
        self._unkeyed: dict[SelT, None] = {}
        self._matching: Index[SelT, ItemT] = Index()

    def put_item(self, item_id: ItemT, labels: Mapping[str, str], parents: tuple[str, ...] = ()) -> None:
        """Set an item's own labels and the names of its parents."""
        item = self._items.get(item_id)
        if item is None:
            item = self._items[item_id] = _Item()
        for gone in item.parents:
            self._children.remove(gone, item_id)
        item.own, item.parents = labels, parents
        for parent in parents:
            self._children.add(parent, item_id)
        self._relabel(item_id, item)

    def remove_item(self, item_id: ItemT) -> None:
        """Forget an item; its matches end."""
        item = self._items.pop(item_id, None)
        if item is None:
            return
        for parent in item.parents:
            self._children.remove(parent, item_id)
        for label, value in item.effective.items():
            self._postings.remove((label, value), item_id)
            self._postings.remove((label, None), item_id)
        for sel_id in list(item.matches):
            self._set_match(sel_id, item_id, item, False)  # type: ignore[arg-type]  # only selector ids are put there

    def put_parent(self, name: str, labels: Mapping[str, str] | None) -> None:
        """Set or remove (None) the labels that items inherit from ``name``."""
        if labels:
            self._parent_labels[name] = labels
        else:
            self._parent_labels.pop(name, None)
        for item_id in self._children.of(name):
            self._relabel(item_id, self._items[item_id])

    def add_selector(self, sel_id: SelT, selector: Selector) -> None:
        """Start to track a selector; an id stands for one selector until it is removed."""
        if sel_id in self._selectors:
            if self._selectors[sel_id] == selector:
                return
            self.remove_selector(sel_id)
        self._selectors[sel_id] = selector
        keys = _postings_of(selector)
        if keys is None:
            self._unkeyed[sel_id] = None
            candidates = tuple(self._items)
        else:
            for key in keys:
                self._by_label.add(key, sel_id)
            candidates = tuple(item for key in keys for item in self._postings.of(key))
        for item_id in candidates:
            item = self._items[item_id]
            if selector.evaluate(item.effective):
                self._set_match(sel_id, item_id, item, True)

    def remove_selector(self, sel_id: SelT) -> None:
        """Forget a selector; its matches end."""
        selector = self._selectors.pop(sel_id, None)
        if selector is None:
            return
        for key in _postings_of(selector) or ():
            self._by_label.remove(key, sel_id)
        self._unkeyed.pop(sel_id, None)
        for item_id in self._matching.of(sel_id):
            self._set_match(sel_id, item_id, self._items[item_id], False)

    def labels_of(self, item_id: ItemT) -> Mapping[str, str]:
        """Own and inherited labels; empty for an unknown item."""
        item = self._items.get(item_id)
        return item.effective if item else {}

    def items_matching(self, sel_id: SelT) -> tuple[ItemT, ...]:
        """The items that match now."""
        return self._matching.of(sel_id)

    @property
    def empty(self) -> bool:
        """True when nothing at all is held."""
        return not (
            self._items
            or len(self._postings)
            or len(self._children)
            or self._selectors
            or len(self._by_label)
            or self._unkeyed
            or len(self._matching)
        )

    def _relabel(self, item_id: ItemT, item: _Item) -> None:
        old, new = item.effective, self._inherit(item)
        item.effective = new
        for label, value in old.items():
            if new.get(label) != value:
                self._postings.remove((label, value), item_id)
                if label not in new:
                    self._postings.remove((label, None), item_id)
        for label, value in new.items():
            if old.get(label) != value:
                self._postings.add((label, value), item_id)
                self._postings.add((label, None), item_id)
        candidates: dict[SelT, None] = dict.fromkeys(self._unkeyed)
        for label, value in new.items():
            candidates.update(dict.fromkeys(self._by_label.of((label, value))))
            candidates.update(dict.fromkeys(self._by_label.of((label, None))))
        for sel_id in [s for s in item.matches if s not in candidates]:
            self._set_match(sel_id, item_id, item, False)  # type: ignore[arg-type]  # only selector ids are put there
        for sel_id in candidates:
            self._set_match(sel_id, item_id, item, self._selectors[sel_id].evaluate(new))

    def _inherit(self, item: _Item) -> dict[str, str]:
        labels: dict[str, str] = {}
        for parent in reversed(item.parents):
            labels.update(self._parent_labels.get(parent, {}))
        labels.update(item.own)
        return labels

    def _set_match(self, sel_id: SelT, item_id: ItemT, item: _Item, matches: bool) -> None:
        if matches == (sel_id in item.matches):
            return
        if matches:
            item.matches[sel_id] = None
            self._matching.add(sel_id, item_id)
        else:
            del item.matches[sel_id]
            self._matching.remove(sel_id, item_id)
        self._on_change(sel_id, item_id, matches)


def _postings_of(selector: Selector) -> list[_Posting] | None:
    """Where to look for items that may match; None: anywhere."""
    required = selector.required_label()
    if required is None:
        return None
    label, values = required
    return [(label, None)] if values is None else [(label, value) for value in sorted(values)]
