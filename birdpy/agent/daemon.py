"""The daemon's tasks, wired: ExaBGP's events → speaker → kernel, and back to ExaBGP.

One task thinks; the others only feed it and wake it.  ExaBGP's death, or ours, changes nothing in the kernel: routes
go when a peer takes them back, or when its restart time has run out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from birdpy.agent import show
from birdpy.agent.kernel import KernelSync
from birdpy.agent.metrics import BirdpyMetrics, readiness
from birdpy.agent.sessions import Announcer, Session
from birdpy.agent.settings import BirdpySettings
from birdpy.exabgp import codec
from birdpy.exabgp.pipe import ApiPipe
from birdpy.exabgp.process import ExabgpProcess, exabgp_environment
from birdpy.rib.speaker import Speaker, SpeakerError
from libcalico.clock import SystemClock
from libcalico.model.speaker import SpeakerConfig, decode_speaker_config
from libcalico.net import Addr, Family
from libcalico.runtime.control import ControlError, ControlServer
from libcalico.runtime.health import Reporter
from libcalico.runtime.http import serve_health
from libcalico.runtime.logs import configure_logging, get_logger
from libcalico.runtime.supervise import Program, until_stopped

_END_OF_RIB_AT_THE_LATEST_S = 10.0
_STALE_AFTER_RETURN_S = 10.0
"""For a peer that is back and sends no End-of-RIB, or has lost its forwarding state, to tell anew what holds."""
_HEALTH_TIMEOUT_S = 60.0
_WITHOUT_A_WORD = "closing without sending any notification"  # ExaBGP 5.0, reactor/peer.py: graceful on both ends


class Daemon:
    """One node's BGP daemon."""

    def __init__(self, program: Program, settings: BirdpySettings) -> None:
        self._program, self.settings = program, settings
        self._log = get_logger("birdpy")
        self._clock = SystemClock()
        self._started = self._clock.monotonic()
        self.speaker = Speaker()
        self.sessions: dict[str, Session] = {}
        self._by_address: dict[str, str] = {}
        self._wake = asyncio.Event()
        self._pipe = ApiPipe(settings.api_socket, self._exabgp_came, self._on_line, self._exabgp_went)
        self.process = ExabgpProcess(settings.accepted_exabgp_file, settings.api_socket.parent)
        self._announcer = Announcer(self.speaker, self._pipe, self.sessions, self._clock)
        self.kernel: KernelSync | None = None
        self._exabgp_text = b""
        self._swept = False
        self.config_error = ""
        self.started_at = self.configured_at = datetime.now(UTC)
        self.bad_lines = 0
        self.metrics = BirdpyMetrics(self)
        self._health = Reporter("bgp", _HEALTH_TIMEOUT_S)

    async def run(self) -> None:
        """Work until asked to stop; routes stay in the kernel."""
        handlers = {"configure": self._configure_command, **show.commands(self)}
        async with ControlServer(self.settings.control_socket, handlers):
            await until_stopped(self._program, self._work())
        if self.kernel is not None:
            self.kernel.close()
        self._log.info("stopped", note="routes stay in the kernel")

    async def _work(self) -> None:
        s = self.settings
        async with asyncio.TaskGroup() as tasks:
            http = serve_health(s.http_host, s.http_port, [self._health], self.metrics.registry)
            tasks.create_task(http, name="http")
            await self._first_configuration()
            kick = self._wake.set
            self.kernel = KernelSync(self.speaker, self._clock, audit_interval_s=s.audit_interval_s, kick=kick)
            tasks.create_task(self._pipe.run(), name="exabgp-pipe")
            tasks.create_task(self.process.run(), name="exabgp")
            tasks.create_task(self.kernel.watch(), name="watch-kernel")
            tasks.create_task(self._announcer.run(), name="announce")
            tasks.create_task(self._think(self.kernel), name="think")
            tasks.create_task(self._reloads(), name="reload")
            tasks.create_task(self._watch_exabgp(), name="watch-exabgp")

    @property
    def exabgp_connected(self) -> bool:
        return self._pipe.connected

    # --- configuration ----------------------------------------------------------------------------------------------

    async def _first_configuration(self) -> None:
        """Wait for confd's first files."""
        while True:
            try:
                self.configure()
            except ControlError as why:
                self._program.status(f"waiting for a configuration: {why}")
                self._health.report(ready=False, detail="no configuration yet")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await self._program.reload.wait()
                self._program.reload.clear()
            else:
                return

    async def _reloads(self) -> None:
        while True:
            await self._program.reload.wait()
            self._program.reload.clear()
            with contextlib.suppress(ControlError):
                self.configure()

    async def _configure_command(self, _: dict[str, object]) -> str:
        self.configure()
        return f"configured, {len(self.speaker.config.peers)} peers"

    def configure(self) -> None:
        """Read both files and take them; a refused one leaves the running one in force.  Raises ControlError."""
        try:
            config = self._with_limits(decode_speaker_config(self.settings.speaker_file.read_bytes()))
            text = self.settings.exabgp_file.read_bytes()
            self.speaker.configure(config)
            if text != self._exabgp_text:
                _replace(self.settings.accepted_exabgp_file, text)
        except (OSError, ValueError, SpeakerError) as why:
            error = f"{self.settings.speaker_file}: {why}"
            if error != self.config_error:
                first = isinstance(why, FileNotFoundError) and not self._exabgp_text
                tell = self._log.info if first else self._log.error
                tell("waiting-for-configuration" if first else "configuration-refused", reason=error)
            self.config_error = error
            raise ControlError(error) from None
        self.config_error = ""
        self.configured_at = datetime.now(UTC)
        if self.settings.log_level == "info":  # who set another has decided
            with contextlib.suppress(ValueError):
                configure_logging("birdpy", config.log_severity, self.settings.log_format)  # type: ignore[arg-type]
        if self.kernel is not None:
            self.kernel.on_configuration()
        self._change_sessions(config)
        self._start_exabgp(config, text)
        self._log.info("configured", peers=len(config.peers), blocks=len(config.blocks))
        self._wake.set()

    def _with_limits(self, config: SpeakerConfig) -> SpeakerConfig:
        """Peers without a limit of their own get that of the settings."""
        most = self.settings.max_prefixes
        peers = [p if p.max_prefixes else msgspec.structs.replace(p, max_prefixes=most) for p in config.peers]
        return msgspec.structs.replace(config, peers=peers)

    def _change_sessions(self, config: SpeakerConfig) -> None:
        wanted = {peer.name: Addr.parse(peer.address) for peer in config.peers}
        former = {session.address: name for name, session in self.sessions.items()}
        for name, address in wanted.items():
            if former.get(address, name) not in wanted:  # the same session under another name
                self.sessions[name] = self.sessions.pop(former[address])
        for name in self.sessions.keys() - wanted.keys():
            del self.sessions[name]
        for name, address in wanted.items():
            if name not in self.sessions or self.sessions[name].address != address:
                self.sessions[name] = Session(address)
        self._by_address = {str(s.address): name for name, s in self.sessions.items()}

    def _start_exabgp(self, config: SpeakerConfig, text: bytes) -> None:
        """Start it, or make it reload if its own file changed; without peers it has nothing to do."""
        changed, self._exabgp_text = text != self._exabgp_text, text
        if not config.peers:
            self.process.suspend()
            return
        listen = config.listen_addresses or _every_address()
        self.process.start(exabgp_environment(listen, config.listen_port, os.environ))
        if changed and self.process.pid is not None:
            self.process.reload()

    async def _watch_exabgp(self) -> None:
        """Replace an ExaBGP that hangs; its peers keep our routes for the restart time."""
        loop = asyncio.get_running_loop()
        most_s = self.settings.exabgp_silence_s
        suspicions = 0
        while True:
            self._pipe.ask_for_a_sign_of_life()
            await asyncio.sleep(most_s / 3)
            silent = self._pipe.connected and loop.time() - self._pipe.heard_at > most_s * 2 / 3
            suspicions = suspicions + 1 if silent else 0
            if suspicions > 1:  # a second look: it may be us who were too busy to listen
                suspicions = 0
                self._log.error(
                    "exabgp-hangs", pid=self.process.pid, silent_s=most_s, note="it is replaced; routes stay"
                )
                self.process.kill()

    # --- ExaBGP's events --------------------------------------------------------------------------------------------

    def _exabgp_came(self) -> None:
        self._log.info("exabgp-connected", pid=self.process.pid)
        self._announcer.new_exabgp()
        if any(peer.authenticated for peer in self.speaker.config.peers):
            self.process.reload()  # only a reload puts the passwords on the listening sockets (ExaBGP 5.0)
        self._wake.set()

    def _exabgp_went(self) -> None:
        """Sessions are gone with it; what the peers told stays in force until they tell anew.

        An ExaBGP that has only lost its relay is ended: it would go on, and never tell again what it has told.
        """
        self._log.warning("exabgp-gone", note="routes stay")
        if self._pipe.exabgp_pid and self._pipe.exabgp_pid == self.process.pid:
            self.process.kill()
        for name in self.sessions:
            self._peer_lost(name, "ExaBGP ended", keep_s=self.settings.restart_time_s)

    def _on_line(self, line: bytes) -> None:
        try:
            event = codec.decode(line)
        except codec.CodecError as why:
            self.bad_lines += 1
            self._log.error("exabgp-event-not-understood", reason=str(why), line=line[:200].decode(errors="replace"))
            return
        if event is None:
            return
        name = self._by_address.get(event.peer)
        if name is None:
            return
        try:
            self._on_event(name, event)
        except Exception:  # one rude update must not take all the other sessions down
            self.bad_lines += 1
            self._log.exception("event-not-taken", peer=name, line=line[:200].decode(errors="replace"))
        self._wake.set()

    def _on_event(self, name: str, event: codec.Event) -> None:
        session = self.sessions[name]
        match event:
            case codec.PeerUpdate():
                session.updates_received += len(event.announced)
                session.withdraws_received += len(event.withdrawn)
                self.speaker.update(name, event.announced, event.withdrawn)
            case codec.PeerSent():
                self._announcer.sent(name, event.prefixes)
            case codec.PeerEndOfRib():
                self.speaker.end_of_rib(name, event.family)
            case codec.PeerOpened():
                session.opened = event
            case codec.PeerState(state="up"):
                self._peer_up(name, session)
            case codec.PeerState(state="down"):
                self._peer_down(name, session, event.reason)
            case codec.PeerNotification():
                session.last_error = event.text
            case codec.PeerFsm():
                session.fsm = event.state.capitalize()
            case codec.PeerState():
                pass

    def _peer_up(self, name: str, session: Session) -> None:
        peer = self.speaker.peers[name]
        session.state, session.since = "up", datetime.now(UTC)
        session.just_up = True
        session.end_of_rib_by = self._clock.monotonic() + _END_OF_RIB_AT_THE_LATEST_S
        opened = session.opened
        router_id = Addr.parse(opened.router_id).value if opened.router_id else 0
        families = peer.configured_families & opened.families or {peer.address.family}
        self.speaker.peer_up(name, router_id, families, extended_next_hop=opened.extended_next_hop)
        if opened.restart_time_s is None or (opened.restarted and not opened.preserved >= families):
            self.speaker.hurry(name, self._clock.monotonic() + _STALE_AFTER_RETURN_S)
        self._log.info("peer-up", peer=name, address=str(session.address))

    def _peer_down(self, name: str, session: Session, reason: str) -> None:
        """A peer that could restart gracefully keeps its routes, unless it or we said goodbye.

        One that ExaBGP itself restarts, since its settings changed, has lost nothing: all its routes stay.
        """
        if session.state != "up":
            if not session.last_error or "notification" in reason:
                session.note(reason)  # "closing connection" says less than what was said before
            return
        if _WITHOUT_A_WORD in reason:
            self._peer_lost(name, "restarted, since its settings changed", self.settings.restart_time_s)
            return
        goodbye = "notification" in reason.lower() or "hold" in reason.lower() or "shutting down" in reason.lower()
        keep = 0.0 if goodbye else min(float(session.opened.restart_time_s or 0), self.settings.restart_time_s)
        self._peer_lost(name, reason, keep, session.opened.restart_families)

    def _peer_lost(self, name: str, reason: str, keep_s: float, families: frozenset[Family] | None = None) -> None:
        """``families``: for which routes are kept; None: for all."""
        if families is not None and not families & self.speaker.peers[name].families:
            keep_s = 0.0
        session = self.sessions[name]
        if session.state == "up":
            self._log.warning("peer-down", peer=name, reason=reason, routes_kept_s=keep_s)
            session.since = datetime.now(UTC)
            session.losses += 1
            self.speaker.peer_down(name, self._clock.monotonic(), keep_s, families)
        session.state, session.fsm = "start", "Idle"
        session.note(reason)
        self._announcer.peer_lost(name)
        self._wake.set()

    # --- thinking ---------------------------------------------------------------------------------------------------

    async def _think(self, kernel: KernelSync) -> None:
        while True:
            self._wake.clear()
            now = self._clock.monotonic()
            self.speaker.tick(now)
            await kernel.learn()
            self.speaker.flush()
            await kernel.learn()  # next hops that only this pass made interesting
            self.speaker.flush()
            self._announcer.take_changes()
            self._sweep_when_told(kernel, now)
            self.metrics.on_pass(self._clock.monotonic() - now, await kernel.program())
            self._report()
            due = [kernel.next_due(), now + 5.0]
            if (tick := self.speaker.next_tick()) is not None:
                due.append(tick)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(due) - self._clock.monotonic())):
                    await self._wake.wait()

    def _sweep_when_told(self, kernel: KernelSync, now: float) -> None:
        """A former run's routes stay until the peers have had their say."""
        if self._swept:
            return
        if self.speaker.all_peers_told_everything() or now - self._started > self.settings.sweep_after_s:
            self._swept = True
            kernel.start_sweep()
            self._log.info("synchronised", routes=len(self.speaker.fib))

    def _report(self) -> None:
        self._program.alive()
        for name, session in self.sessions.items():
            refused = self.speaker.peers[name].refused
            if refused and not session.limited:
                limit = self.speaker.peers[name].config.max_prefixes
                session.last_error = f"more than {limit} prefixes: new ones are refused"
                self._log.error("too-many-prefixes", peer=name, limit=limit, note="new ones are refused, others stay")
            session.limited = bool(refused)
        state = {name: s.state == "up" for name, s in self.sessions.items()}
        age_s, up = self._clock.monotonic() - self._started, sum(state.values())
        ready, why = readiness(state, age_s, exabgp=self.exabgp_connected, synchronised=self._swept)
        self._health.report(ready=ready, detail=why)
        trouble = ", configuration refused" if self.config_error else ""
        self._program.ready(f"{up}/{len(self.sessions)} sessions up, {len(self.speaker.fib)} routes{trouble}")


def _replace(path: Path, content: bytes) -> None:
    """Write a file that only we may read, at once as a whole.  Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    fresh.replace(path)


def _every_address() -> list[str]:
    """bindMode None: all addresses of every family that the kernel has, the node's or not.

    Another list would be another ExaBGP, and a node that gets an IPv6 address must not lose its IPv4 sessions for it.
    """
    return ["0.0.0.0", "::"] if Path("/proc/net/if_inet6").exists() else ["0.0.0.0"]  # noqa: S104
