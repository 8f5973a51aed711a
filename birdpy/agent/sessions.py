"""Sessions: what ExaBGP has been told for each peer, beside what each peer shall be told.

ExaBGP keeps announcements over a session's end and sends them again with the next one, so what it was told must be
taken back even while a peer is down.  A new ExaBGP has been told nothing.

End-of-RIB goes out only when ExaBGP has said that every announcement is sent: a peer that helps us restart drops, at
End-of-RIB, what has not been announced again (RFC 4724 section 4.2), and ExaBGP does not keep the two in order.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from birdpy.exabgp import codec
from birdpy.exabgp.codec import PeerOpened
from birdpy.exabgp.pipe import ApiPipe
from birdpy.rib.path import Attributes
from birdpy.rib.speaker import Speaker
from libcalico.clock import Clock
from libcalico.net import Addr, Family, Prefix
from libcalico.reconcile import DeltaTracker


class Session:
    """One peer's session as seen from outside."""

    def __init__(self, address: Addr) -> None:
        self.address = address
        self.told: DeltaTracker[Prefix, Attributes] = DeltaTracker()
        self.state = "start"
        self.fsm = "Idle"
        self.since: datetime | None = None
        self.last_error = ""
        self.opened = PeerOpened("", "")
        self.limited = False
        self.just_up = False
        self.owes_end_of_rib: set[Family] = set()
        self.unsent: set[Prefix] = set()
        self.end_of_rib_by = 0.0  # at the latest, seconds monotonic
        self.losses = 0
        # routes, since birdpy's start
        self.updates_received = self.withdraws_received = 0
        self.updates_sent = self.withdraws_sent = 0

    def note(self, error: str) -> None:
        """Take it as the last error, unless that says the same and more."""
        if not self.last_error.startswith(error):
            self.last_error = error

    def may_end(self, now: float) -> bool:
        """True if an End-of-RIB is owed and may go out."""
        if not self.owes_end_of_rib or self.state != "up" or not self.told.in_sync:
            return False
        return not self.unsent or now >= self.end_of_rib_by


class Announcer:
    """Writes to ExaBGP what differs, whenever something does."""

    def __init__(self, speaker: Speaker, pipe: ApiPipe, sessions: dict[str, Session], clock: Clock) -> None:
        self._speaker, self._pipe, self._sessions, self._clock = speaker, pipe, sessions, clock
        self._news = asyncio.Event()

    def take_changes(self) -> None:
        """Note what the speaker now wants each peer to know."""
        for name, table in self._speaker.adj_rib_out.items():
            session = self._sessions.get(name)
            if session is None:
                continue
            for prefix, attributes in table.take_changes().items():
                session.told.want(prefix, attributes)
            if session.just_up:  # only now is it known what there is to tell before the End-of-RIB
                session.just_up = False
                session.owes_end_of_rib = set(self._speaker.peers[name].families)
            if not session.told.in_sync or session.may_end(self._clock.monotonic()):
                self._news.set()

    def sent(self, name: str, prefixes: list[Prefix]) -> None:
        """ExaBGP has sent these."""
        session = self._sessions[name]
        session.unsent.difference_update(prefixes)
        if session.may_end(self._clock.monotonic()):
            self._news.set()

    def peer_lost(self, name: str) -> None:
        """The next session begins with nothing told."""
        session = self._sessions[name]
        session.told.replace_wanted({})
        session.just_up = False
        session.owes_end_of_rib.clear()
        session.unsent.clear()
        self._news.set()

    def new_exabgp(self) -> None:
        """A new process knows nothing."""
        for session in self._sessions.values():
            session.told.replace_seen({})
        self._news.set()

    async def run(self) -> None:
        """Work for ever; changes that come while the pipe is full are coalesced."""
        while True:
            await self._news.wait()
            self._news.clear()
            for session in list(self._sessions.values()):
                await self._write(session)

    async def _write(self, session: Session) -> None:
        pending = session.told.pending()
        gone = [prefix for prefix, attributes in pending if attributes is None]
        new = [(prefix, attributes) for prefix, attributes in pending if attributes is not None]
        commands = codec.withdraw(session.address, gone) + codec.announce(session.address, new)
        if commands:
            if session.state == "up":
                session.unsent.update(prefix for prefix, _ in new)
            session.unsent.difference_update(gone)
            if not await self._pipe.send(commands, len(pending)):
                return
            session.updates_sent += len(new)
            session.withdraws_sent += len(gone)
            for prefix, attributes in pending:
                session.told.saw(prefix, attributes)
        if session.may_end(self._clock.monotonic()):
            owed = sorted(session.owes_end_of_rib)
            if await self._pipe.send([codec.end_of_rib(session.address, family) for family in owed]):
                session.owes_end_of_rib.difference_update(owed)
