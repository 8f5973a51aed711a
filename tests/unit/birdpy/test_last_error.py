"""What ``birdpy show`` gives as the last error of a session: the newest that says something, in words."""

from __future__ import annotations

from pathlib import Path

from tests.unit.birdpy.test_graceful_restart import Session


def notification(session: Session, code: int, subcode: int, message: str) -> None:
    session.hear("notification", notification={"code": code, "subcode": subcode, "data": "", "message": message})


async def test_a_notification_is_told_in_words_and_what_only_machines_can_read_is_left_out(tmp_path: Path) -> None:
    session = Session(tmp_path)
    notification(session, 2, 2, "\x00\x00\ufffd\ufffd")
    last = session.daemon.sessions["p"]
    assert last.last_error == "notification received (2,2): bad peer AS"
    session.comes(None)
    notification(session, 6, 2, 'Shutdown Communication: "lunch"')
    session.hear("state", state="down", reason="notification received (6,2)")
    told = 'notification received (6,2): administrative shutdown (Shutdown Communication: "lunch")'
    assert last.last_error == told
    session.hear("state", state="down", reason="closing connection")
    assert last.last_error == told, "an attempt that fails without a word says less"


async def test_why_a_lost_session_does_not_come_back_is_told_instead_of_why_it_was_lost(tmp_path: Path) -> None:
    session = Session(tmp_path)
    session.comes(None)
    session.is_lost()
    last = session.daemon.sessions["p"]
    assert last.last_error == "closing connection"
    session.hear("state", state="down", reason="peer reset, notification sent (2,2)")
    assert last.last_error.endswith("(2,2): bad peer AS")
