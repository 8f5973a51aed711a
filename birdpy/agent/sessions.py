"""Sessions: what ExaBGP has been told for each peer, beside what each peer shall be told.

ExaBGP keeps announcements over a session's end and sends them again with the next one, so what it was told must be
taken back even while a peer is down.  A new ExaBGP has been told nothing.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

from birdpy.exabgp import codec
from birdpy.exabgp.pipe import ApiPipe
from birdpy.rib.path import Attributes
from birdpy.rib.speaker import Speaker
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
        self.router_id = ""
        self.restart_time_s = 0
        self.owes_end_of_rib: set[Family] = set()


class Announcer:
    """Writes to ExaBGP what differs, whenever something does."""

    def __init__(self, speaker: Speaker, pipe: ApiPipe, sessions: dict[str, Session]) -> None:
        self._speaker, self._pipe, self._sessions = speaker, pipe, sessions
        self._news = asyncio.Event()

    def take_changes(self) -> None:
        """Note what the speaker now wants each peer to know."""
        for name, table in self._speaker.adj_rib_out.items():
            session = self._sessions.get(name)
            if session is None:
                continue
            for prefix, attributes in table.take_changes().items():
                session.told.want(prefix, attributes)
            if not session.told.in_sync or session.owes_end_of_rib:
                self._news.set()

    def peer_lost(self, name: str) -> None:
        """The next session begins with nothing told."""
        session = self._sessions[name]
        session.told.replace_wanted({})
        session.owes_end_of_rib.clear()
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
        owed = sorted(session.owes_end_of_rib)
        commands += [codec.end_of_rib(session.address, family) for family in owed]
        if not commands or not await self._pipe.send(commands):
            return
        for prefix, attributes in pending:
            session.told.saw(prefix, attributes)
        session.owes_end_of_rib.difference_update(owed)
