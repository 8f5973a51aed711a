"""YoungInterfaces: who has a grace, and until when."""

from __future__ import annotations

from felixpy.agent.young_interfaces import GRACE_S, LONG_AGO, YoungInterfaces


def test_a_new_interface_has_its_grace_once_and_a_change_of_it_gives_no_other() -> None:
    young = YoungInterfaces()
    young.on_link(5, "cali1", False, 100.0)
    young.on_link(5, "cali1", False, 105.0)
    assert young.until("cali1", 105.0) == 100.0 + GRACE_S
    assert young.until("cali1", 100.0 + GRACE_S) is None
    assert young.until("cali2", 100.0) is None


def test_an_interface_that_was_there_before_us_has_none() -> None:
    young = YoungInterfaces()
    young.on_link(5, "cali1", False, LONG_AGO)
    young.on_link(5, "cali1", False, 100.0)
    assert young.until("cali1", 100.0) is None


def test_who_claims_an_interface_ends_its_grace_for_good() -> None:
    young = YoungInterfaces()
    young.on_link(5, "cali1", False, 100.0)
    young.claim("cali1")
    young.on_link(5, "cali1", False, 101.0)
    assert young.until("cali1", 101.0) is None


def test_the_next_interface_of_a_name_and_a_renamed_one_are_new() -> None:
    young = YoungInterfaces()
    young.on_link(5, "cali1", False, 100.0)
    young.claim("cali1")
    young.on_link(5, "cali1", True, 200.0)
    assert young.until("cali1", 200.0) is None
    young.on_link(6, "cali1", False, 300.0)
    assert young.until("cali1", 300.0) == 300.0 + GRACE_S
    young.on_link(7, "veth0", False, 300.0)
    young.on_link(7, "cali2", False, 400.0)
    assert young.until("cali2", 400.0) == 400.0 + GRACE_S


def test_a_late_word_of_a_gone_interface_takes_nothing_from_the_next_of_its_name() -> None:
    young = YoungInterfaces()
    young.on_link(5, "cali1", False, 100.0)
    young.on_link(6, "cali1", False, 200.0)
    young.on_link(5, "cali1", True, 200.0)
    assert young.until("cali1", 200.0) == 200.0 + GRACE_S
