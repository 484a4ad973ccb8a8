"""Prometheus metrics of a gateway and a sink, read from their state when they are scraped.

Names: `mesh_<what>_<unit>`, counters end in `_total`; docs/metrics.md is checked against this module by a test.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh.monitor import Monitor

if TYPE_CHECKING:  # a gateway runs without the code of sinks, and the other way round
    from gateway.core.geo import GeoAnswers
    from gateway.core.peers import Link
    from gateway.core.ring import Rings
    from gateway.core.session import Session
    from gateway.shell.audit import AuditTrail
    from gateway.shell.gateway import Gateway
    from gateway.shell.gateway_links import GatewayLinks
    from gateway.shell.links import SinkLinks
    from gateway.shell.spool import SpoolFolder
    from sinkd.shell.mirrors import Mirroring
    from sinkd.shell.replica import Replica
    from sinkd.shell.sink import Sink


class GatewayMetrics(Collector):
    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        gateway = self._gateway
        plane, events, outbox = gateway.plane, gateway.outbox.counters, gateway.outbox
        stats = plane.stats
        yield _gauge("mesh_gateway_connections", "Client connections now", stats.connections)
        yield _counter("mesh_gateway_connections_accepted", "Client connections accepted", stats.total_connections)
        yield _gauge("mesh_gateway_subscriptions", "Subscriptions now", stats.subscriptions)
        yield _counter("mesh_gateway_messages_in", "Messages from clients", stats.in_msgs)
        yield _counter("mesh_gateway_messages_out", "Messages to clients", stats.out_msgs)
        yield _counter("mesh_gateway_bytes_in", "Payload bytes from clients", stats.in_bytes)
        yield _counter("mesh_gateway_bytes_out", "Payload bytes to clients", stats.out_bytes)
        yield _counter("mesh_gateway_slow_consumers", "Connections cut for not reading", stats.slow_consumers)
        yield _counter("mesh_gateway_stale_connections", "Connections cut for not answering", stats.stale_connections)
        stalls = "Times that a publisher was slowed for a subscriber"
        yield _counter("mesh_gateway_stalls", stalls, stats.stalled_clients)
        yield _gauge("mesh_gateway_route_plans", "Routes of subjects held in the cache", plane.forwarder.plans_cached)
        yield _gauge("mesh_gateway_compiled", "1 where the compiled data plane runs", plane.engine.name == "compiled")
        yield _counter("mesh_gateway_events_captured", "Events taken into the outbox", events.captured)
        yield _counter("mesh_gateway_events_appended", "Events committed and fsynced by a sink", events.appended)
        yield _counter("mesh_gateway_events_duplicate", "Events that the log knew by their id", events.duplicates)
        yield _counter("mesh_gateway_events_given_up", "Events for which a gap is written instead", events.given_up)
        refused = CounterMetricFamily("mesh_gateway_events_refused", "Events not taken, by error code", labels=["code"])
        for code, count in sorted(events.refused.items()):
            refused.add_metric([str(code)], count)
        yield refused
        yield _counter("mesh_gateway_batches_sent", "Record batches sent", events.batches_sent)
        again = "Record batches taken back after they were sent"
        yield _counter("mesh_gateway_batches_sent_again", again, events.batches_sent_again)
        yield _gauge("mesh_gateway_outbox_bytes", "Bytes of events on their way to the log", outbox.size_bytes)
        yield _gauge("mesh_gateway_publishers_paused", "Connections waiting for room", gateway.publishers_waiting)
        yield from _geo(outbox.geo)
        yield from _contracts(gateway)
        if gateway.links is not None:
            yield from _sink_links(gateway.links)
        if gateway.rings is not None:
            yield from _rings(gateway.rings)
        if gateway.spool is not None:
            yield from _spool(gateway.spool)
        if gateway.peers is not None:
            dropped = "Messages for other workers, and other gateways, that were too far behind"
            yield _gauge("mesh_gateway_peers_missing", "Other workers without a link to it", len(gateway.peers.missing))
            yield _counter("mesh_gateway_peer_messages_dropped", dropped, stats.dropped_for_peers)
        if gateway.mesh is not None:
            yield from _gateway_links(gateway.mesh, plane.peers.links)
        requests = CounterMetricFamily("mesh_gateway_log_requests", "$LOG requests, by verb", labels=["verb"])
        for verb, count in sorted(gateway.history.requests.items()):
            requests.add_metric([verb], count)
        yield requests
        yield _counter("mesh_gateway_log_records_shown", "Records shown to readers", gateway.history.records_shown)
        yield from _audit(gateway.audit)
        yield from _beacons(gateway)


def _geo(geo: "GeoAnswers") -> Iterator[Metric]:
    from gateway.core.geo import LATENCY_BOUNDS_S

    waits = "Publishers who wait until other zones hold their events"
    yield _gauge("mesh_gateway_geo_waiting", waits, geo.waiting)
    yield _counter("mesh_gateway_geo_timeouts", "Publishers for whom other zones were too late", geo.timeouts)
    what = "From a publish to its answer, where that waits for other zones"
    bounds = [*map(str, LATENCY_BOUNDS_S), "+Inf"]
    buckets = list(zip(bounds, accumulate(geo.latencies), strict=True))
    yield HistogramMetricFamily("mesh_gateway_geo_answer_seconds", what, buckets, geo.latency_s)


def _audit(trail: "AuditTrail") -> Iterator[Metric]:
    written = CounterMetricFamily("mesh_audit_events", "Audit events written, by kind", labels=["kind"])
    for kind, count in sorted(trail.written.items()):
        written.add_metric([kind], count)
    yield written
    yield _counter("mesh_audit_events_summed", "Occurrences that went into a sum", trail.summary.summed)
    too_many = "Occurrences of more sources than are told apart"
    yield _counter("mesh_audit_events_suppressed", too_many, trail.summary.suppressed)
    yield _counter("mesh_audit_events_lost", "Audit events for which a gap is written instead", trail.lost)


def _beacons(gateway: "Gateway") -> Iterator[Metric]:
    written = CounterMetricFamily("mesh_coverage_beacons", "Beacons written, by kind", labels=["kind"])
    for kind, count in sorted(gateway.beacons.written.items()):
        written.add_metric([kind], count)
    yield written
    over = "Accounts that ended because the log knew less, or otherwise, than was acknowledged"
    yield _counter("mesh_coverage_runs_over", over, gateway.outbox.accounts.runs_over)
    labels = ["why", "stream"]
    events = CounterMetricFamily("mesh_coverage_uncovered_events", "Events that no account is kept of", labels=labels)
    sizes = CounterMetricFamily("mesh_coverage_uncovered_bytes", "Bytes of those", labels=labels)
    for row in gateway.beacons.uncovered():
        events.add_metric([row.why, row.stream], row.events)
        sizes.add_metric([row.why, row.stream], row.bytes)
    yield from (events, sizes)


def _contracts(gateway: "Gateway") -> Iterator[Metric]:
    known = gateway.contracts.contracts.known
    yield _gauge("mesh_contracts", "Contracts of the zone, as this gateway knows them", len(known or ()))
    what = "Events that broke their contract, refused where contracts are enforced"
    broken = CounterMetricFamily("mesh_contract_violations", what, labels=["account", "contract", "reason"])
    for (account, contract, reason), count in sorted(gateway.contracts.violations.items()):
        broken.add_metric([account, contract, reason], count)
    yield broken


def _gateway_links(mesh: "GatewayLinks", links: "dict[Session, Link]") -> Iterator[Metric]:
    labels = ["gateway"]
    up = GaugeMetricFamily("mesh_gateway_link_up", "1 while the gateway of the zone is linked", labels=labels)
    rtt = GaugeMetricFamily("mesh_gateway_link_rtt_seconds", "How long its last answer took", labels=labels)
    may_want = "1 while it is sent everything, since it may want more than is known"
    stale = GaugeMetricFamily("mesh_gateway_link_stale", may_want, labels=labels)
    wanted = "Patterns and queue groups that its clients want"
    interest = GaugeMetricFamily("mesh_gateway_link_interest", wanted, labels=labels)
    again = "Times that what was known of it was not what it had told, since the link is up"
    repairs = CounterMetricFamily("mesh_gateway_link_interest_repairs", again, labels=labels)
    counted = {
        field: CounterMetricFamily(f"mesh_gateway_link_{name}", meaning, labels=labels)
        for field, name, meaning in (
            ("in_msgs", "messages_in", "Messages from it since the link is up"),
            ("out_msgs", "messages_out", "Messages to it since the link is up"),
            ("in_bytes", "bytes_in", "Headers and payloads of those from it"),
            ("out_bytes", "bytes_out", "Headers and payloads of those to it"),
        )
    }
    for name in mesh.peers:
        up.add_metric([name], name in mesh.links)
    for connection in [*mesh.links.values(), *mesh.borders.values()]:
        name = connection.name
        learned = links[connection.session].learned
        stale.add_metric([name], learned.is_stale)
        interest.add_metric([name], learned.count)
        repairs.add_metric([name], learned.repairs)
        if connection.session.rtt_ms >= 0:
            rtt.add_metric([name], connection.session.rtt_ms / 1_000)
        for field, family in counted.items():
            family.add_metric([name], getattr(connection.session, field))
    refused = CounterMetricFamily("mesh_gateway_links_refused", "Links that were not wanted", labels=["reason"])
    for kind, count in sorted(mesh.refused.items()):
        refused.add_metric([kind], count)
    lost = "Messages for a gateway that was too far behind, and from it that nobody here wanted"
    dropped = CounterMetricFamily("mesh_gateway_link_messages_dropped", lost, labels=["gateway", "reason"])
    for (name, reason), count in sorted(mesh.dropped.items()):
        dropped.add_metric([name, reason], count)
    yield from (up, rtt, stale, interest, repairs, *counted.values(), refused, dropped)
    if mesh.far:
        yield from _borders(mesh)


def _borders(mesh: "GatewayLinks") -> Iterator[Metric]:
    held = GaugeMetricFamily("mesh_gateway_border_held", "1 while this gateway links its zone with it", labels=["zone"])
    linked = GaugeMetricFamily("mesh_gateway_border_up", "1 while a way to the zone is known", labels=["zone"])
    what = "Bytes over the link to the zone since it is up, as they are (plain) and as they were compressed (wire)"
    sizes = CounterMetricFamily("mesh_gateway_border_bytes", what, labels=["zone", "direction", "kind"])
    counted = mesh.report().borders
    for zone in mesh.far:
        held.add_metric([zone], zone in mesh.borders)
        linked.add_metric([zone], bool(mesh.server.plane.peers.leading(zone)))
        for name, size_bytes in counted[zone]._asdict().items() if zone in counted else ():
            kind, _, direction = name.partition("_")
            sizes.add_metric([zone, direction, kind], size_bytes)
    yield from (held, linked, sizes)


def _sink_links(links: "SinkLinks") -> Iterator[Metric]:
    is_open = "1 while a link to the sink that leads the group is open"
    up = GaugeMetricFamily("mesh_gateway_sink_link_up", is_open, labels=["group"])
    to_sink = "1 for the sink that the link is open to"
    on = GaugeMetricFamily("mesh_gateway_sink_link_on", to_sink, labels=["group", "sink"])
    connects = CounterMetricFamily("mesh_gateway_sink_link_connects", "Connections made to sinks", labels=["group"])
    why = "Attempts to link that failed, with sinks that do not lead among them"
    failed = CounterMetricFamily("mesh_gateway_sink_link_attempts_failed", why, labels=["group"])
    for each in links:
        group = str(each.group)
        up.add_metric([group], float(each.is_up))
        for sink in each.sinks:
            on.add_metric([group, sink], float(sink == each.sink))
        connects.add_metric([group], each.connects)
        failed.add_metric([group], each.failed_attempts)
    yield from (up, on, connects, failed)


def _rings(rings: "Rings") -> Iterator[Metric]:
    yield _gauge("mesh_gateway_ring_bytes", "Bytes of the latest events in memory", rings.size_bytes)
    yield _gauge("mesh_gateway_ring_events", "Events in memory", rings.events)
    yield _counter("mesh_gateway_ring_events_dropped", "Events that made room for later ones", rings.events_dropped)
    too_large = "Events of more than 8 MiB, which are not kept"
    yield _counter("mesh_gateway_ring_events_too_large", too_large, rings.events_too_large)


def _spool(folder: "SpoolFolder") -> Iterator[Metric]:
    yield _gauge("mesh_gateway_spool_bytes", "Bytes of spool files", folder.size_bytes)
    yield _gauge("mesh_gateway_spool_events", "Events in the spool on their way to the log", folder.spool.events)
    yield _gauge("mesh_gateway_spool_shut", "1 while nothing more can be spooled", folder.problem is not None)
    restored = "Events that an earlier process had spooled, found at the start"
    yield _counter("mesh_gateway_spool_events_restored", restored, folder.restored_events)
    lost = "Events that became gaps at the start, since the spool was damaged"
    yield _counter("mesh_gateway_spool_events_lost", lost, folder.lost_events)


class SinkMetrics(Collector):
    def __init__(self, sink: "Sink") -> None:
        self._sink = sink

    def collect(self) -> Iterator[Metric]:
        sink = self._sink
        for replicas in (_raft, _member_state, _peers, _logs):
            yield from replicas(sink.replicas)
        yield from _mirrors(sink.mirroring)
        yield from _coverage(sink)
        digests = sink.comparing.digests
        compared = "Roots of other sinks that were compared with those here"
        yield _counter("mesh_coverage_replicas_compared", compared, digests.compared)
        differing = "Logs of other sinks that have another root than here"
        yield _gauge("mesh_coverage_replicas_differing", differing, len(digests.differing))
        attesting, reread = sink.attesting, "Bytes of logs that were read again from the disk, to be certified"
        yield _counter("mesh_coverage_certificates_signed", "Certificates that this sink has signed", attesting.signed)
        yield _counter("mesh_coverage_certified_bytes", reread, attesting.read_bytes)
        yield _gauge("mesh_sink_disk_free_bytes", "Free bytes on the data folder's disk", sink.free_bytes)
        yield _gauge("mesh_sink_storage_full", "1 while appends are refused for lack of space", sink.is_storage_full())
        written = CounterMetricFamily("mesh_audit_notes", "Audit events that this sink has written", labels=["kind"])
        for kind, count in sorted(sink.audit.written.items()):
            written.add_metric([kind], count)
        yield written
        yield _gauge("mesh_audit_notes_waiting", "Audit events that wait for the one that leads", sink.audit.waiting)
        yield _counter("mesh_audit_notes_lost", "Audit events that were given up", sink.audit.lost)


def _coverage(sink: "Sink") -> Iterator[Metric]:
    """What this sink makes of the beacons of gateways."""
    from protocol.coverage import REPORTS, WHYS
    from sinkd.core.speakers import REASONS
    from sinkd.core.summaries import STATES, missing, states
    from sinkd.shell.accounting import outcomes

    coverage, keeper = sink.coverage, sink.coverage.keeper
    what = "Events that gateways took in, by what became of them, as this sink knows"
    events = GaugeMetricFamily("mesh_coverage_events", what, labels=["stream", "outcome"])
    for (stream, outcome), count in sorted(outcomes(sink.replicas, keeper).items()):
        events.add_metric([stream, outcome], count)
    named = "Events that gateways have named and the log does not hold, at most, by why"
    gaps = GaugeMetricFamily("mesh_coverage_gap_events", named, labels=["why"])
    lacking = missing(keeper, sink.now_ms(), sink.has_gateway)
    for why in WHYS:
        gaps.add_metric([why], lacking[why])
    workers = GaugeMetricFamily("mesh_coverage_gateways", "Gateway workers, by how they are", labels=["state"])
    counted = states(keeper, sink.now_ms(), sink.has_gateway)
    for state in STATES:
        workers.add_metric([state], counted[state])
    unclosed = sum(each.unclosed for each in keeper.speakers.by_name.values())
    without = "Processes of gateways that others have followed, without a last beacon"
    refused = "Events of the coverage log that count for nothing"
    written = "Reports and summaries that this sink has written"
    yield from (events, gaps, workers, _gauge("mesh_coverage_unclosed_processes", without, unclosed))
    yield _by("mesh_coverage_beacons_refused", refused, "reason", dict.fromkeys(REASONS, 0) | keeper.refused)
    yield _by("mesh_coverage_reports", written, "kind", dict.fromkeys(REPORTS, 0) | coverage.notes.written)
    waits = "Reports that wait to be written"
    yield _gauge("mesh_coverage_reports_waiting", waits, coverage.notes.waiting)
    yield _counter("mesh_coverage_reports_lost", "Reports that were given up", coverage.notes.lost)
    again = "Links that this sink has closed, so that a gateway sends again"
    yield _counter("mesh_coverage_links_closed", again, coverage.links_closed)
    recorded = "Gap records that this sink has written, of what nobody has"
    yield _counter("mesh_coverage_gaps_recorded", recorded, coverage.gaps_recorded)


def _by(name: str, help_text: str, label: str, counted: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for value, count in sorted(counted.items()):
        family.add_metric([value], count)
    return family


def _raft(replicas: "list[Replica]") -> Iterator[Metric]:
    """What there is one number of for each group."""
    for name, help_text, value in _GAUGES:
        gauge = GaugeMetricFamily(name, help_text, labels=["group"])
        for each in replicas:
            gauge.add_metric([str(each.number)], float(value(each)))
        yield gauge
    for name, help_text, value in _COUNTERS:
        counter = CounterMetricFamily(name, help_text, labels=["group"])
        for each in replicas:
            counter.add_metric([str(each.number)], float(value(each)))
        yield counter


_Value = Callable[["Replica"], float]
_GAUGES: tuple[tuple[str, str, _Value], ...] = (
    ("mesh_sink_raft_leads", "1 while this sink leads the group", lambda it: it.group.leads),
    ("mesh_sink_raft_term", "Raft term", lambda it: it.group.term),
    ("mesh_sink_raft_commit_index", "Index of the last committed entry", lambda it: it.group.commit_index),
    ("mesh_sink_raft_applied_index", "Index of the last applied entry", lambda it: it.group.applied_index),
    ("mesh_sink_raft_last_index", "Index of the last entry in the journal", lambda it: it.journal.last_index),
    ("mesh_sink_raft_leader_known", "1 while this sink leads or knows who does", lambda it: bool(it.group.leader)),
    (
        "mesh_sink_raft_muted",
        "1 while this sink may not vote: it is not whole",
        lambda it: bool(it.group.member.muted),
    ),
    ("mesh_sink_checkpoint_index", "Index that the last checkpoint stands for", lambda it: it.checkpoint_index),
    ("mesh_sink_journal_bytes", "Bytes of journal files", lambda it: it.journal.size_bytes),
    ("mesh_sink_hot_bytes", "Committed bytes that are not in segments yet", lambda it: it.store.hot_bytes),
    ("mesh_sink_links", "Links to gateways now", lambda it: len(it.links.connections)),
    ("mesh_sink_scrub_round_bytes", "Bytes that a round reads", lambda it: it.scrubber.progress.of_bytes),
    (
        "mesh_sink_scrub_round_read_bytes",
        "Bytes of them that this round, or the last one, has read",
        lambda it: it.scrubber.progress.read_bytes,
    ),
    ("mesh_sink_damaged_segments", "Segments that are bad on the disk now", lambda it: len(it.scrubber.damaged)),
    (
        "mesh_sink_logs_differing",
        "Logs whose Merkle root is not the one that was committed",
        lambda it: len(it.scrubber.suspected),
    ),
    (
        "mesh_sink_given_up_batches",
        "Batches for which gap records may stand, since the disks of all sinks had spoilt them",
        lambda it: sum(len(partition.replicated.damaged) for partition in it.store.partitions),
    ),
)
_COUNTERS: tuple[tuple[str, str, _Value], ...] = (
    (
        "mesh_sink_raft_filled_bytes",
        "Bytes pulled from other sinks to fill this one",
        lambda it: it.filling.pulled_bytes if it.filling is not None else 0,
    ),
    (
        "mesh_sink_raft_checkpoints_sent",
        "Checkpoints sent to sinks that lacked what the journal no longer has",
        lambda it: it.group.member.checkpoints_sent,
    ),
    (
        "mesh_sink_commands_committed",
        "Raft commands applied since the start",
        lambda it: it.group.commands_committed,
    ),
    (
        "mesh_sink_losses_accepted",
        "Times that the group went on with a part of its log, by an operator's word, as applied since the start",
        lambda it: it.group.losses_accepted,
    ),
    ("mesh_sink_journal_syncs", "Journal fdatasyncs since the start", lambda it: it.group.syncs),
    ("mesh_sink_appends", "Batches received from gateways", lambda it: it.links.appends),
    ("mesh_sink_appends_refused_full", "Batches refused for lack of space", lambda it: it.links.refused_full),
    ("mesh_sink_fetches", "Reads served", lambda it: it.links.fetches),
    ("mesh_sink_scrubbed_bytes", "Bytes of segments that were read again", lambda it: it.scrubber.read_bytes),
    ("mesh_sink_segments_found_damaged", "Segments that the disk had spoilt", lambda it: it.scrubber.found),
    ("mesh_sink_segments_mended", "Segments made whole from other sinks", lambda it: it.scrubber.mended),
    (
        "mesh_sink_segments_found_altered",
        "Segments with whole batches that were not what was committed",
        lambda it: it.scrubber.altered,
    ),
    (
        "mesh_sink_batches_refused",
        "Whole batches of other sinks that were not what was committed",
        lambda it: it.scrubber.refused,
    ),
)


def _member_state(replicas: "list[Replica]") -> Iterator[Metric]:
    from sinkd.shell.raft import STATES

    what = "1 for the state that this sink is in"
    state = GaugeMetricFamily("mesh_sink_raft_state", what, labels=["group", "state"])
    for each in replicas:
        for number, name in STATES.items():
            state.add_metric([str(each.number), name], float(each.group.member.state == number))
    yield state


def _peers(replicas: "list[Replica]") -> Iterator[Metric]:
    """What this sink knows of the others."""
    labels = ["group", "sink"]
    connected = GaugeMetricFamily("mesh_sink_raft_peer_connected", "1 while the sink is connected", labels=labels)
    may_not = "1 while the sink says that it may not vote"
    muted = GaugeMetricFamily("mesh_sink_raft_peer_muted", may_not, labels=labels)
    lacks = "Entries that the sink lacks, as the leader knows it"
    lag = GaugeMetricFamily("mesh_sink_raft_peer_lag_entries", lacks, labels=labels)
    for each in replicas:
        for peer in each.links.operator.peers():
            names = [str(each.number), peer["node"]]
            connected.add_metric(names, float(peer["connected"]))
            if "muted" in peer:
                muted.add_metric(names, float(bool(peer["muted"])))
            if "lag_entries" in peer:
                lag.add_metric(names, float(peer["lag_entries"]))
    yield from (connected, muted, lag)


def _logs(replicas: "list[Replica]") -> Iterator[Metric]:
    labels = ["stream", "partition"]
    start = GaugeMetricFamily("mesh_log_start_offset", "First offset of a log", labels=labels)
    end = GaugeMetricFamily("mesh_log_high_watermark", "Offset behind the last committed event", labels=labels)
    size = GaugeMetricFamily("mesh_log_bytes", "Bytes of a log", labels=labels)
    for partition in [partition for each in replicas for partition in each.store.partitions]:
        names = [partition.stream.name, str(partition.number)]
        start.add_metric(names, partition.start_offset)
        end.add_metric(names, partition.high_watermark)
        size.add_metric(names, partition.size_bytes)
    yield from (start, end, size)


def _mirrors(mirroring: "Mirroring") -> Iterator[Metric]:
    """Of what this sink leads."""
    from sinkd.shell.lag import STATES

    labels = ["origin", "stream", "partition"]
    lag = {
        name: GaugeMetricFamily(f"mesh_mirror_{name}", what, labels=labels)
        for name, what in (
            ("lag_events", "Events of another zone's log that its mirror lacks"),
            ("lag_bytes", "Bytes of them, as an estimate"),
            ("lag_seconds", "Age of the oldest of them, or how long the origin has been silent"),
        )
    }
    state = GaugeMetricFamily("mesh_mirror_state", "1 for the state that the mirror is in", labels=[*labels, "state"])
    for row in mirroring.rows():
        names = [row["origin"], row["stream"], str(row["partition"])]
        for name, family in lag.items():
            family.add_metric(names, row[name])
        for name in STATES:
            state.add_metric([*names, name], float(row["state"] == name))
    yield from (*lag.values(), state)
    yield from _copies(mirroring)


def _copies(mirroring: "Mirroring") -> Iterator[Metric]:
    from sinkd.core.mirroring import REASONS

    gaps = CounterMetricFamily("mesh_mirror_gaps", "Gap records that were put into mirrors", labels=["origin"])
    what = "Frames of an origin that were wrong, each of which ended its link"
    refused = CounterMetricFamily("mesh_mirror_refused", what, labels=["origin", "reason"])
    what = "Bytes of batches that came from another zone, on the wire and as they are"
    copied = CounterMetricFamily("mesh_copy_bytes", what, labels=["origin", "kind"])
    for zone, origin in mirroring.origins.items():
        gaps.add_metric([zone], origin.gaps)
        for reason in REASONS:
            refused.add_metric([zone, reason], origin.refused[reason])
        copied.add_metric([zone, "wire"], origin.wire_bytes)
        copied.add_metric([zone, "raw"], origin.raw_bytes)
    yield from (gaps, refused, copied)


class MonitorMetrics(Collector):
    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "mesh_monitor_requests", "Requests to the monitor port, by page", labels=["page"]
        )
        for page, count in sorted(self._monitor.requests.items()):
            requests.add_metric([page], count)
        yield requests


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, value=float(value))


def _counter(name: str, help_text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, help_text, value=float(value))
