"""The MTU for new pods, as the CNI plugin reads it."""

from __future__ import annotations

from pathlib import Path

from felixpy.agent.mtu_file import MtuFile


def test_a_smaller_number_leaves_no_digit_of_a_longer_one(tmp_path: Path) -> None:
    place = tmp_path / "mtu"
    file = MtuFile(str(place))
    file.say(12000)
    assert place.read_text() == "12000"
    file.say(1450)
    assert place.read_text() == "1450"


def test_it_is_written_only_when_it_changes_and_a_fault_is_no_end(tmp_path: Path) -> None:
    place = tmp_path / "mtu"
    file = MtuFile(str(place))
    file.say(1450)
    place.write_text("9")
    file.say(1450)
    assert place.read_text() == "9"
    MtuFile(str(tmp_path / "absent" / "mtu")).say(1450)
    MtuFile("").say(1450)
