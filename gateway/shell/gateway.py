"""A gateway: clients on one side, the zone's sinks on the other, and the data plane between them.

    client socket ─► Plane.receive ─► live subscribers
                         │ capture
                         ▼
                      Outbox ─► SinkLinks ─► sink ─► Outbox.appended ─► PubAck ─► Plane.publish ─► client socket

This module wires the rooms together; it decides nothing but when a connection waits for room in the outbox.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from gateway.core.acks import Answer
from gateway.core.connections import ClosedConnections
from gateway.core.differing import digests, stream_differences
from gateway.core.engine import BEST, Engine
from gateway.core.identity import Responses, UserEntry, with_role
from gateway.core.lanes import Lane
from gateway.core.nats_values import Moment
from gateway.core.outbox import Outbox
from gateway.core.plane import Plane, PlaneOptions
from gateway.core.reloading import changed
from gateway.core.ring import Rings
from gateway.core.session import Session
from gateway.core.spool_format import Owner
from gateway.shell import lame_duck
from gateway.shell.audit import AuditTrail
from gateway.shell.beacons import Beacons, Speaker, Unkept
from gateway.shell.contracts import PREFIX as CONTRACTS
from gateway.shell.contracts import ContractService
from gateway.shell.discovery import Cluster, DiscoveredLinks
from gateway.shell.gateway_links import FarZone, GatewayLinks, LinkTls
from gateway.shell.history import HistoryService
from gateway.shell.link import SinkDial
from gateway.shell.links import SinkLinks
from gateway.shell.peers import ALONE, PeerLinks, Worker
from gateway.shell.ring import RingLog
from gateway.shell.server import ClientServer
from gateway.shell.spool import SpoolFolder
from gateway.shell.tls import ClientTls
from protocol import audit, config, coverage, link, publish
from protocol.coverage import RUN_BYTES, Sign
from protocol.limits import (
    AUDIT_DRAIN_MS_MAX,
    BEACON_DRAIN_MS_MAX,
    CONTRACTS_WAIT_MS_MAX,
    NONCE_BYTES,
    OUTBOX_DRAIN_MS_MAX,
)
from protocol.routes import ZSTD, Hello
from protocol.streams import StreamDefinition, StreamState
from protocol.subjects import SYSTEM_TOKENS

LINGER_S = 0.001
TICK_S = 0.1
log = structlog.get_logger()


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Gateway:
    """`await start()`, `await stop()`. `sinks` are those of the zone; none where it keeps no log.

    `link_tls` is for the links to other gateways; None where they are plain. With `cluster` no file names these, and
    it says how they are found. `sign` is for what it says of what it took in; None where no node has a certificate.
    """

    def __init__(
        self,
        configuration: config.Config,
        node: str,
        sinks: Sequence[SinkDial],
        version: str,
        *,
        wall_ms: Callable[[], int] = wall_clock_ms,
        worker: Worker = ALONE,
        link_tls: LinkTls | None = None,
        engine: Engine = BEST,
        cluster: Cluster | None = None,
        sign: Sign | None = None,
    ) -> None:
        self.configuration = configuration
        self.node = configuration.gateway(node)
        self.zone = self.node.zone
        self._wall_ms = wall_ms
        options = _options(configuration, self.node, version, worker, meets_others=cluster is not None)
        self.plane = Plane(options, self, random.randrange, engine)
        self.server = _server(configuration, self.node, self.plane, worker)
        self._worker = worker
        self.mesh = self._mesh(link_tls, cluster)
        self.peers = self._peer_links() if worker.count > 1 else None
        self.spool = _spool(configuration, self.node, worker, self._answer) if sinks else None
        self.outbox = self._outbox(engine)
        self.audit = AuditTrail(self.outbox, self.zone, node, monotonic_ms, wall_ms, self._flush_outbox_soon)
        self.beacons = self._beacons(sign, keeps_log=bool(sinks))
        self.rings = None if sinks else _rings(configuration, engine)
        self.ring_log = None if self.rings is None else RingLog(node, self.rings)
        self.plane.routes_changed(keeps_events=bool(sinks) or self.rings is not None, keeps_log=bool(sinks))
        self._streams = _provisional(configuration, self.zone)
        mode, flush = configuration.mesh.contracts, self.server.flush_history
        self.contracts = ContractService(self.plane, mode, self.zone, self.plane.routes_changed, flush, monotonic_ms)
        self.links = self._sink_links(sinks, worker) if sinks else None
        self.history = self._history()
        self._waiting: dict[Session, tuple[StreamState, int]] = {}  # what for, since when
        self._given_up: dict[Session, StreamState] = {}
        self._routes = self.outbox.routes
        self.not_in_force: list[str] = []  # what of the file is not, in sentences
        self._outbox_scheduled = False
        self._tasks: list[asyncio.Task[None]] = []
        self.closed = ClosedConnections()
        self.started_ms = self.loaded_ms = monotonic_ms()  # `loaded_ms`: what it goes by now
        self._calendar = Moment(self.started_ms, wall_ms())

    def _outbox(self, engine: Engine) -> Outbox:
        zones, keeper = self.configuration.zones, _keeper(self.configuration, self.zone).name
        others = [name for name, zone in zones.items() if zone.sinks and name != keeper]
        spool = self.spool
        if spool is None:
            many = self.plane.answer
            return Outbox(
                self.zone, self._answer, answer_many=many, engine=engine, other_zones=others, new_run=_new_run
            )
        return Outbox(
            self.zone,
            self._answer,
            spool=spool.spool,
            answer_when_kept=spool.hold,
            engine=engine,
            other_zones=others,
            new_run=_new_run,
        )

    def _beacons(self, sign: Sign | None, *, keeps_log: bool) -> Beacons:
        mesh, node, has_spool = self.configuration.mesh.name, self.node.name, self.spool is not None
        speaker = Speaker(mesh, self.zone, node, self._worker.number, secrets.token_hex(RUN_BYTES), has_spool)
        clocks = monotonic_ms, self._wall_ms
        return Beacons(self.outbox, speaker, sign, self._unkept, *clocks, self._flush_outbox_soon, keeps_log=keeps_log)

    def _unkept(self) -> Unkept:
        stats = self.plane.stats
        return Unkept(stats.unkept_msgs, stats.unkept_bytes)

    def _peer_links(self) -> PeerLinks:
        """The links to the other workers of this gateway."""
        return PeerLinks(self.server, self._worker, random.random, self.mesh.zones if self.mesh is not None else None)

    def _mesh(self, link_tls: LinkTls | None, cluster: Cluster | None) -> GatewayLinks | None:
        """The links to other gateways, of this zone and of others; None where there are none."""
        configuration = self.configuration
        others = [other for other in configuration.zones[self.zone].gateways.values() if other is not self.node]
        far = {
            name: FarZone(
                configuration.zones[name].gateways, configuration.link(self.zone, name).live_rate_bytes_per_second
            )
            for name in self.plane.options.zones
        }
        if not others and not far and cluster is None:
            return None
        hello = Hello(
            configuration.mesh.name,
            self.zone,
            self.node.name,
            self.plane.options.server_id,
            compression=ZSTD,
            revision=configuration.mesh.revision,
            digests=digests(configuration) if cluster is None else {},
            worker=self._worker.number,
            workers=self._worker.count,
        )
        if cluster is not None:
            return DiscoveredLinks(self.server, hello, self.node, cluster, random.random, self._link_refused)
        told = self._link_refused, self._file_differs
        return GatewayLinks(self.server, hello, self.node, others, far, link_tls, random.random, *told)

    def _sink_links(self, sinks: Sequence[SinkDial], worker: Worker) -> SinkLinks:
        configuration, node = self.configuration, self.node.name
        self.outbox.set_streams(self._streams)
        links = SinkLinks(
            _keeper(configuration, self.zone).groups,
            sinks,
            link.Hello(configuration.mesh.name, self.zone, node, contracts=True),
            lambda: link.Open(node, worker.number, secrets.token_bytes(16)),
            self.outbox,
            monotonic_ms,
            self._sink_spoke,
            self.contracts.told,
        )
        self.contracts.sinks = links
        return links

    def _history(self) -> HistoryService:
        """Read from the sinks or, where there are none, from the ring."""
        ring = self.ring_log
        return HistoryService(
            self.plane,
            self.links or ring,
            self.zone if ring is None else self.node.name,
            self.server.flush_history,
            self.audit.history_refused,
            (lambda: self.outbox.routes.every) if ring is None else ring.streams,
            self.configuration.limits.max_pending_bytes,
        )

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> tuple[str, int]:
        """Begins to serve; where clients connect.

        OSError: the address cannot be had, or the spool not be read. DataError: the spool cannot be used.
        """
        loop = asyncio.get_running_loop()
        if self.plane.engine.name == "reference":
            log.warning("data_plane_is_slow", reason="it was built without a C compiler and runs as pure Python")
        if self.spool is not None:
            self.spool.open(self.outbox, self._streams, monotonic_ms(), self._wall_ms())
            self._routes = self.outbox.routes
        if self.links is not None:
            self.links.reach(self._routes.groups)
            self._tasks.append(loop.create_task(self.links.run()))
        self._tasks.append(loop.create_task(self._tick()))
        if self.peers is not None:
            await self.peers.start()
        if self.mesh is not None:
            await self.mesh.start()
        await self.contracts.wait(CONTRACTS_WAIT_MS_MAX / 1000)
        clients = await self.server.start()
        if self.mesh is not None:
            self.mesh.opened_to_clients()
        return clients

    def reload(self, configuration: config.Config) -> None:
        """Go by its users, accounts, TLS of clients, and limits, as far as these can change (`core.reloading`).

        ConfigError: its certificates are of no use, and nothing has changed. Whoever calls sees to it that nothing else
        is different, and that no other process or sink goes by the same file.
        """
        tls = configuration.tls_clients
        ready = ClientTls(tls) if tls is not None else None
        options = self.plane.options
        meets_others, version = options.has_gateways, options.server_version
        wanted = _options(configuration, self.node, version, self._worker, meets_others=meets_others)
        self.server.go_by(ready, configuration.limits.write_deadline_ms)
        self.plane.reload(changed(options, wanted), monotonic_ms())
        self.configuration, self.loaded_ms = configuration, monotonic_ms()
        self.server.flush()

    def take_rates(self, configuration: config.Config) -> None:
        """Limits what goes to other zones as another configuration says."""
        if self.mesh is not None:
            rates = {name: configuration.link(self.zone, name).live_rate_bytes_per_second for name in self.mesh.far}
            self.mesh.take_rates(rates)

    async def linked(self) -> None:
        """Until the links to all groups of the zone's sinks have been open."""
        if self.links is not None:
            await self.links.opened()

    async def retire(self) -> None:
        """Lame duck mode: returns when the last client has gone; `stop` is due then."""
        limits = self.configuration.limits
        await lame_duck.retire(
            self.server,
            duration_ms=limits.lame_duck_duration_ms,
            grace_period_ms=limits.lame_duck_grace_period_ms,
            choose=random.uniform,
        )

    async def stop(self, *, drain: bool = True) -> None:
        """Takes no more from clients, sends what the outbox holds (a sink that is away may come back), and closes.

        Without `drain` the outbox is given up at once: there will be no sink.
        """
        self.server.stop_reading()
        self.audit.finish()
        since_ms = monotonic_ms()
        while self.links is not None and monotonic_ms() < since_ms + self._drain_ms() * drain:
            self._flush_outbox()
            await asyncio.sleep(LINGER_S)
        if drain and self.beacons.close():
            await self._last_beacon()
        self._flush_outbox()
        if not self.outbox.is_empty:
            log.warning("outbox_abandoned" if self.spool is None else "outbox_kept", bytes=self.outbox.size_bytes)
        await self.history.close()
        await self.contracts.close()
        if self.peers is not None:
            await self.peers.finish()
        if self.mesh is not None:
            await self.mesh.stop()
        await self.server.stop()
        if self.peers is not None:
            await self.peers.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.spool is not None:
            self.spool.close()

    def _drain_ms(self) -> int:
        """How long a stop waits for what the outbox holds now."""
        if self.outbox.is_empty:
            return 0
        of_nodes = self.outbox.is_empty_but(audit.STREAM, coverage.STREAM)
        return AUDIT_DRAIN_MS_MAX if of_nodes else OUTBOX_DRAIN_MS_MAX

    async def _last_beacon(self) -> None:
        """Until it is in the log, or that has taken too long."""
        until_ms = monotonic_ms() + BEACON_DRAIN_MS_MAX
        while self.outbox.holds(coverage.STREAM) and monotonic_ms() < until_ms:
            self._flush_outbox()
            await asyncio.sleep(LINGER_S)

    def health(self) -> str | None:
        """What is wrong, or None."""
        if self.spool is not None and self.spool.problem is not None:
            return f"spool {self.spool.path}: {self.spool.problem}"
        if self.links is not None and (problem := self.links.problem) is not None:
            return problem
        if self.peers is not None and self.peers.missing:
            return f"no link to workers {self.peers.missing}"
        return None

    def moment(self) -> Moment:
        """Now, for what is shown of this gateway; `started_ms` is by the same clock."""
        now_ms = monotonic_ms()
        self._calendar = self._calendar.at(now_ms, self._wall_ms())
        return self._calendar

    @property
    def publishers_waiting(self) -> int:
        """Connections that are not read from until the outbox has room."""
        return len(self._waiting)

    # -- what the plane asks for (gateway.core.plane.Hooks) -----------------------------------------------------------

    def keeps(self, account: str, subject: str) -> bool:
        if self.links is None:
            return self.rings is not None
        return self.outbox.routes.plan(account, subject, b"") is not None

    def governs(self, account: str, subject: str) -> bool:
        return self.contracts.contracts.governs(account, subject)

    def admits(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        refusal = self.contracts.refusal(session, subject, header_block, payload)
        if refusal is None:
            if not self.keeps(session.account.name, subject):
                self.plane.stats.unkept_msgs += 1
                self.plane.stats.unkept_bytes += len(header_block) + len(payload)
            return True
        account = session.account.name
        plan = self.outbox.routes.plan(account, subject, b"")
        self.outbox.counters.refuse(refusal)
        if reply:
            self._answer(account, reply, publish.error_answer(plan[0].name if plan is not None else "", refusal))
        return False

    def capture(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> bool:
        """An event for the log, if a stream takes it; whether the log will answer it."""
        if self.links is None:
            if self.rings is not None:
                self.rings.add(session.account.name, subject, header_block, payload, self._wall_ms())
                self.kept()
            return False
        times, gives_up = (monotonic_ms(), self._wall_ms()), session in self._given_up
        event = session.account.name, subject, reply, header_block, payload
        answers, has_room = self.outbox.publish(*event, *times, gives_up=gives_up)
        if not has_room and session not in self._waiting:
            self._pause(session, subject)
        self._flush_outbox_soon()
        return answers

    def lane(self, account: str, subject: str) -> tuple[Lane, bytes] | None:
        if self.links is None:
            return self.rings.lane(account, subject) if self.rings is not None else None
        return self.outbox.lane(account, subject)

    def wall_ms(self) -> int:
        return self._wall_ms()

    def kept(self) -> None:
        if self.ring_log is not None:
            self.ring_log.kept()
        else:
            self._flush_outbox_soon()

    def service(self, session: Session, subject: str, reply: str, header_block: bytes, payload: bytes) -> None:
        """`$LOG` and contracts are served here; the other system subjects have nobody behind them yet."""
        if subject.startswith("$LOG."):
            self.history.request(session, subject, reply, payload)
        elif subject.startswith(CONTRACTS):
            self.contracts.request(session, subject, reply, payload)
        elif reply:
            self.plane.no_responders(session, reply, subject)

    def nonce(self) -> bytes:
        return secrets.token_bytes(NONCE_BYTES)

    def _link_refused(self, host: str, what: str, why: str) -> None:
        self.audit.note(audit.LINK_REFUSED, host, what=what, why=why)

    def _file_differs(self, what: str, why: str) -> None:
        self.audit.note(audit.CONFIGURATION_DIFFERS, "", what=what, why=why)

    def session_admitted(self, session: Session) -> None:
        self.audit.client_connected(session)

    def refused(self, session: Session, what: str) -> None:
        self.audit.permission_refused(session, what)

    def session_renewed(self, session: Session) -> None:
        self.history.session_ended(session)
        self.contracts.session_ended(session)

    def session_closed(self, session: Session) -> None:
        self.closed.add(session, monotonic_ms())
        self.audit.client_closed(session)
        self._waiting.pop(session, None)
        self._given_up.pop(session, None)
        self.history.session_ended(session)
        self.contracts.session_ended(session)

    # -- the outbox ---------------------------------------------------------------------------------------------------

    def _flush_outbox(self) -> None:
        self._outbox_scheduled = False
        lingers = self.outbox.flush(monotonic_ms())
        if self.links is not None and (self.spool is None or self.spool.write()):
            self.links.send_outbox()
            self.outbox.hash_sent()
        if self.spool is not None:
            self.server.flush()  # answers that waited for it
        if lingers:
            self._flush_outbox_soon(LINGER_S)

    def _flush_outbox_soon(self, delay_s: float = 0) -> None:
        """Once per turn of the event loop, however many events it brings."""
        if not self._outbox_scheduled:
            self._outbox_scheduled = True
            asyncio.get_running_loop().call_later(delay_s, self._flush_outbox)

    def _sink_spoke(self) -> None:
        """Answers have made room and sent PubAcks, or the streams are others."""
        if self.outbox.routes is not self._routes:
            self._routes = self.outbox.routes
            self.plane.routes_changed()
            if self.links is not None:
                self.links.reach(self._routes.groups)
            self._compare_streams()
        self._flush_outbox_soon()
        self._resume_waiting()
        self.server.flush()

    def _compare_streams(self) -> None:
        """Reports what the sinks have committed otherwise than this gateway's file says, whenever that changes."""
        in_force = self.outbox.revision
        if not in_force:
            return  # nothing was ever committed
        problems = stream_differences(self._streams, self._routes.every.values(), in_force)
        if problems and problems != self.not_in_force:
            revision = self.configuration.mesh.revision
            what = f"revision {revision} of the file of {self.node.name}, {in_force} is in force"
            self.audit.note(audit.CONFIGURATION_DIFFERS, "", what=what, why="; ".join(problems))
            for problem in problems:
                log.warning("configuration_not_in_force", problem=problem, revision_in_force=in_force)
        self.not_in_force = problems

    def _answer(self, account: str, reply: str, answer: bytes) -> None:
        if reply.partition(".")[0] not in SYSTEM_TOKENS:  # nothing is ever delivered there
            self.plane.publish(reply, "", b"", answer, account)

    def _pause(self, session: Session, subject: str) -> None:
        plan = self.outbox.routes.plan(session.account.name, subject, b"")
        if plan is not None:
            self._waiting[session] = plan[0], monotonic_ms()
            self.plane.pause(session)
            log.debug("publisher_paused", connection=session.id, stream=plan[0].name)

    def _resume_waiting(self) -> None:
        """Lets publishers go on when there is room, or, where the stream says so, when they have waited too long."""
        for session, (stream, since_ms) in list(self._waiting.items()):
            stalled = stream.outbox_overflow == "gap" and monotonic_ms() - since_ms >= stream.outbox_stall_ms
            if stalled:
                log.warning("publisher_gives_up", connection=session.id, stream=stream.name)
                self._given_up[session] = stream
            if stalled or self.outbox.has_room(stream):
                del self._waiting[session]
                self.plane.resume(session)
        for session, stream in list(self._given_up.items()):
            if self.outbox.has_room(stream):
                del self._given_up[session]

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.outbox.tick(monotonic_ms())
            self.audit.tick()
            self.beacons.tick()
            if self.spool is not None:
                self.spool.look_at_disk()
            self._flush_outbox()
            self._resume_waiting()
            self.server.flush()


def _new_run() -> bytes:
    return secrets.token_bytes(RUN_BYTES)


def new_server_id() -> str:
    """A name that no other gateway has, and this one only until it ends."""
    return f"M{secrets.token_hex(16).upper()}"


def _options(
    configuration: config.Config, node: config.Gateway, version: str, worker: Worker, *, meets_others: bool
) -> PlaneOptions:
    limits, tls = configuration.limits, configuration.tls_clients
    return PlaneOptions(
        server_id=worker.server_id or new_server_id(),
        server_name=node.name,
        server_version=version,
        host=node.client.host,
        port=node.client.port,
        max_payload_bytes=limits.max_payload_bytes,
        max_control_line_bytes=limits.max_control_line_bytes,
        max_connections=limits.max_connections,
        max_subscriptions=limits.max_subscriptions,
        max_subscription_tokens=limits.max_subscription_tokens,
        max_pending_bytes=limits.max_pending_bytes,
        ping_interval_ms=limits.ping_interval_ms,
        ping_max=limits.ping_max,
        auth_timeout_ms=limits.auth_timeout_ms,
        users=tuple(_user(user) for user in configuration.users),
        tls_required=tls is not None and not tls.allow_non_tls,
        tls_verify=tls is not None and tls.verify,
        tls_available=tls is not None and tls.allow_non_tls,
        accounts=configuration.accounts,
        no_auth_user=configuration.mesh.no_auth_user or "",
        maps_certificates=configuration.tls_clients is not None and configuration.tls_clients.map,
        has_gateways=meets_others or len(configuration.zones[node.zone].gateways) > 1,
        broadcasts=configuration.mesh.routing == "broadcast",
        zone=node.zone,
        zones=configuration.live_zones(node.zone),
        first_id=worker.number + 1,
        id_step=worker.count,
    )


def _user(user: config.User) -> UserEntry:
    responses = user.allow_responses
    entry = UserEntry(
        user=user.user or "",
        password=user.password,
        token=user.token,
        publish_allow=user.publish_allow,
        publish_deny=user.publish_deny or (),
        subscribe_allow=user.subscribe_allow,
        subscribe_deny=user.subscribe_deny or (),
        responses=Responses(responses.max, responses.expires_ms) if responses is not None else None,
        history=user.history,
        nkey=user.nkey,
        account=user.account,
        role=user.role,
    )
    return with_role(entry)


def _server(configuration: config.Config, node: config.Gateway, plane: Plane, worker: Worker) -> ClientServer:
    bind, tls = node.bind(node.client), configuration.tls_clients
    return ClientServer(
        plane,
        host=bind.host,
        port=worker.client_port or bind.port,
        shares_port=worker.count > 1,
        now_ms=monotonic_ms,
        write_deadline_ms=configuration.limits.write_deadline_ms,
        tls=ClientTls(tls) if tls is not None else None,
    )


def _spool(configuration: config.Config, node: config.Gateway, worker: Worker, answer: Answer) -> SpoolFolder | None:
    if not node.spool:
        return None
    owner = Owner(configuration.mesh.name, node.zone, node.name, worker.number)
    return SpoolFolder(Path(node.spool), owner, worker.count, answer)


def _rings(configuration: config.Config, engine: Engine) -> Rings | None:
    """The latest events, where no sink keeps them and the configuration asks for that."""
    if not configuration.mesh.buffer_bytes:
        return None
    catch_alls = configuration.catch_all, *configuration.account_catch_alls
    return Rings(configuration.mesh.buffer_bytes, catch_alls, engine)


def _keeper(configuration: config.Config, zone: str) -> config.Zone:
    """The zone whose sinks keep the events of `zone`."""
    return configuration.zones[configuration.zones[zone].kept_by or zone]


def _provisional(configuration: config.Config, zone: str) -> list[StreamState]:
    """What the file says, to route by until the sink has told what is committed; nothing is sent before that."""
    groups, streams = _keeper(configuration, zone).groups, configuration.kept_streams()
    definitions = (StreamDefinition.of(stream, b"?" + stream.name.encode()) for stream in streams)
    return [definition.committed(0, definition.incarnation, groups) for definition in definitions]
