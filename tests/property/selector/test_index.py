"""SelectorIndex against the plain question: for each pair, does the selector match the labels?"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from libcalico.selector import parse_selector
from libcalico.selector.index import SelectorIndex

LABEL = st.sampled_from(["a", "b", "c"])
VALUE = st.sampled_from(["x", "y", "xy"])
LEAF = st.one_of(
    st.builds("{} == '{}'".format, LABEL, VALUE),
    st.builds("{} != '{}'".format, LABEL, VALUE),
    st.builds("has({})".format, LABEL),
    st.builds("!has({})".format, LABEL),
    st.builds("{} in {{'{}','{}'}}".format, LABEL, VALUE, VALUE),
    st.builds("{} not in {{'{}'}}".format, LABEL, VALUE),
    st.builds("{} starts with '{}'".format, LABEL, VALUE),
    st.just("all()"),
)
SELECTOR = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.builds("({} && {})".format, inner, inner),
        st.builds("({} || {})".format, inner, inner),
        st.builds("!({})".format, inner),
    ),
    max_leaves=5,
)
LABELS = st.dictionaries(LABEL, VALUE, max_size=3)
PARENTS = st.lists(st.sampled_from(["p1", "p2"]), max_size=2, unique=True).map(tuple)
STEP = st.one_of(
    st.tuples(st.just("item"), st.integers(0, 3), st.none() | st.tuples(LABELS, PARENTS)),
    st.tuples(st.just("parent"), st.sampled_from(["p1", "p2"]), st.none() | LABELS),
    st.tuples(st.just("selector"), st.integers(0, 3), st.none() | SELECTOR),
)


@given(st.lists(STEP, max_size=30))
@settings(max_examples=300, deadline=None)
def test_the_index_always_equals_a_scan(steps: list[tuple[str, object, object]]) -> None:
    told: set[tuple[int, int]] = set()

    def on_change(sel: int, item: int, matches: bool) -> None:
        assert ((sel, item) in told) != matches, "told what was already so"
        (told.add if matches else told.discard)((sel, item))

    index: SelectorIndex[int, int] = SelectorIndex(on_change)
    items: dict[int, tuple[dict[str, str], tuple[str, ...]]] = {}
    parents: dict[str, dict[str, str]] = {}
    selectors: dict[int, str] = {}
    for kind, key, value in steps:
        if kind == "item":
            if value is None:
                items.pop(key, None)  # type: ignore[call-overload]
                index.remove_item(key)  # type: ignore[arg-type]
            else:
                items[key] = value  # type: ignore[index, assignment]
                index.put_item(key, *value)  # type: ignore[arg-type, misc]
        elif kind == "parent":
            parents[key] = value or {}  # type: ignore[index, assignment]
            index.put_parent(key, value)  # type: ignore[arg-type]
        elif value is None:
            selectors.pop(key, None)  # type: ignore[call-overload]
            index.remove_selector(key)  # type: ignore[arg-type]
        else:
            selectors[key] = value  # type: ignore[index, assignment]
            index.add_selector(key, parse_selector(value))  # type: ignore[arg-type]
        expected = set()
        for item, (own, of) in items.items():
            labels: dict[str, str] = {}
            for name in of:
                for label, text in parents.get(name, {}).items():
                    labels.setdefault(label, text)
            labels |= own
            assert index.labels_of(item) == labels
            expected |= {(s, item) for s, text in selectors.items() if parse_selector(text).evaluate(labels)}
        assert told == expected
    for item in list(items):
        index.remove_item(item)
    for sel in list(selectors):
        index.remove_selector(sel)
    assert index.empty
    assert not told
