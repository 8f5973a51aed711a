"""DeltaTracker against two plain dicts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from libcalico.reconcile import DeltaTracker, RetryQueue

KEY = st.integers(0, 4)
ROW = st.none() | st.integers(0, 2)
STEP = st.one_of(
    st.tuples(st.sampled_from(["want", "saw"]), KEY, ROW),
    st.tuples(st.sampled_from(["replace_wanted", "replace_seen"]), st.dictionaries(KEY, st.integers(0, 2)), st.none()),
)


@given(st.lists(STEP))
def test_pending_is_the_difference_of_two_dicts(steps: list[tuple[str, object, object]]) -> None:
    tracker: DeltaTracker[int, int] = DeltaTracker()
    wanted: dict[int, int] = {}
    seen: dict[int, int] = {}
    for verb, key, row in steps:
        side = wanted if verb.endswith(("want", "wanted")) else seen
        if verb.startswith("replace"):
            drifted = {k for k in side.keys() | key.keys() if side.get(k) != key.get(k)}  # type: ignore[attr-defined]
            side.clear()
            side.update(key)  # type: ignore[call-overload]
            result = getattr(tracker, verb)(key)
            if verb == "replace_seen":
                assert set(result) == drifted
        else:
            getattr(tracker, verb)(key, row)
            if row is None:
                side.pop(key, None)  # type: ignore[call-overload]
            else:
                side[key] = row  # type: ignore[index, assignment]
        pending = tracker.pending()
        assert dict(pending) == {k: wanted.get(k) for k in wanted.keys() | seen.keys() if wanted.get(k) != seen.get(k)}
        rows = [row for _, row in pending]
        assert rows == sorted(rows, key=lambda r: r is not None), "removals come first"
        assert tracker.in_sync is (wanted == seen)


def test_a_retry_backs_off_up_to_its_ceiling_and_forgets_on_success() -> None:
    queue: RetryQueue[str] = RetryQueue(first_s=1, ceiling_s=4)
    assert [queue.failed("a", now=0.0) for _ in range(4)] == [1, 2, 4, 4]
    assert queue.take_due(3.9) == []
    assert queue.take_due(4.0) == ["a"]
    assert queue.next_due() is None
    queue.succeeded("a")
    assert queue.failed("a", now=10.0) == 11
