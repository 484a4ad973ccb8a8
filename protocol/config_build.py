"""From the file as written (`config_schema`) to the configuration as read (`config_model`); the file is checked."""

from protocol import audit, coverage, limits
from protocol import config_model as model
from protocol import config_schema as schema
from protocol.accounts import DEFAULT_ACCOUNT
from protocol.config_checks import CATCH_ALL, catch_all_of


def build(file: schema.File) -> model.Config:
    """The configuration that a file without problems describes."""
    catch_alls = _catch_alls(file)
    clients, nodes = file.tls.clients, file.tls.nodes
    return model.Config(
        mesh=_mesh(file.mesh),
        limits=_limits(file.limits),
        zones={name: _zone(name, zone) for name, zone in file.zones.items()},
        links=tuple(_link((one, other), link) for one, others in file.links.items() for other, link in others.items()),
        accounts=tuple(file.accounts),
        streams={
            name: _stream(name, stream.account, stream, covered=file.coverage.enabled)
            for name, stream in file.streams.items()
            if name not in catch_alls
        },
        catch_all=catch_alls.pop(CATCH_ALL),
        account_catch_alls=tuple(catch_alls.values()),
        audit=_audit(file),
        coverage=_coverage(file.coverage),
        users=tuple(_user(user) for user in file.users),
        tls_clients=_tls_clients(clients) if clients else None,
        tls_nodes=model.TlsNodes(**nodes.model_dump()) if nodes else None,
    )


def _mesh(mesh: schema.Mesh) -> model.Mesh:
    return model.Mesh(
        name=mesh.name,
        revision=mesh.revision,
        mode=mesh.mode,
        routing=mesh.routing,
        catch_all=mesh.catch_all,
        buffer_bytes=mesh.buffer,
        insecure=mesh.insecure,
        contracts=mesh.contracts,
        no_auth_user=mesh.no_auth_user,
    )


def _limits(limits: schema.Limits) -> model.Limits:
    return model.Limits(
        max_payload_bytes=limits.max_payload,
        max_control_line_bytes=limits.max_control_line,
        max_connections=limits.max_connections,
        max_subscriptions=limits.max_subscriptions,
        max_subscription_tokens=limits.max_subscription_tokens,
        max_pending_bytes=limits.max_pending,
        write_deadline_ms=limits.write_deadline,
        ping_interval_ms=limits.ping_interval,
        ping_max=limits.ping_max,
        auth_timeout_ms=limits.auth_timeout,
        lame_duck_duration_ms=limits.lame_duck_duration,
        lame_duck_grace_period_ms=limits.lame_duck_grace_period,
    )


def _zone(name: str, zone: schema.Zone) -> model.Zone:
    return model.Zone(
        name=name,
        groups=zone.groups,
        gateways={node: _gateway(node, name, gateway) for node, gateway in zone.gateways.items()},
        sinks={node: _sink(node, name, sink) for node, sink in zone.sinks.items()},
        kept_by=zone.kept_by,
        mode=zone.mode,
    )


def _gateway(name: str, zone: str, gateway: schema.Gateway) -> model.Gateway:
    return model.Gateway(
        name=name,
        zone=zone,
        client=gateway.client,
        mesh=gateway.mesh,
        monitor=gateway.monitor,
        listen=gateway.listen,
        workers=gateway.workers,
        spool=gateway.spool,
    )


def _sink(name: str, zone: str, sink: schema.Sink) -> model.Sink:
    return model.Sink(
        name=name,
        zone=zone,
        link=sink.link,
        raft=sink.raft,
        monitor=sink.monitor,
        kafka=sink.kafka,
        listen=sink.listen,
        data=sink.data,
        disk_reserve_bytes=sink.disk_reserve,
        fsync=sink.fsync,
        scrub_rate_bytes_per_second=sink.scrub_rate,
    )


def _link(zones: tuple[str, str], link: schema.Link) -> model.Link:
    return model.Link(
        zones=zones,
        live=link.live,
        live_rate_bytes_per_second=link.live_rate,
        copy_rate_bytes_per_second=link.copy_rate,
    )


def _catch_alls(file: schema.File) -> dict[str, model.Stream]:
    """Every account's, by name; those without a table of their own are tuned as `events` is."""
    common = file.streams.get(CATCH_ALL, schema.Stream.empty())
    names = {catch_all_of(account): account for account in (DEFAULT_ACCOUNT, *file.accounts)}
    return {
        name: _stream(name, account, file.streams.get(name, common), covered=file.coverage.enabled)
        for name, account in names.items()
    }


def _audit(file: schema.File) -> model.Stream:
    """What is kept of it is the file's to say, and nothing else."""
    tuned = schema.Stream.model_construct(
        subjects=audit.SUBJECTS,
        reply="header",
        retention=file.audit.retention,
        dedup=schema.Dedup.model_construct(window=limits.AUDIT_DEDUP_MS),
        outbox=schema.Outbox.model_construct(bytes=limits.AUDIT_OUTBOX_BYTES),
    )
    return _stream(audit.STREAM, audit.ACCOUNT, tuned, covered=file.coverage.enabled)


def _coverage(table: schema.Coverage) -> model.Coverage:
    """Its own stream is not covered: each beacon would have another one say that it was taken in."""
    tuned = schema.Stream.model_construct(
        subjects=coverage.SUBJECTS,
        reply="header",
        retention=table.retention,
        dedup=schema.Dedup.model_construct(window=limits.COVERAGE_DEDUP_MS),
        outbox=schema.Outbox.model_construct(bytes=limits.COVERAGE_OUTBOX_BYTES),
    )
    stream = _stream(coverage.STREAM, coverage.ACCOUNT, tuned, covered=False)
    return model.Coverage(enabled=table.enabled, gap_grace_ms=table.gap_grace, stream=stream)


def _stream(name: str, account: str, stream: schema.Stream, *, covered: bool) -> model.Stream:
    return model.Stream(
        name=name,
        account=account,
        subjects=(">",) if stream.subjects is None else stream.subjects,
        partitions=stream.partitions,
        key=stream.key,
        ack=stream.ack,
        reply=stream.reply or ("header" if stream.subjects is None else "always"),
        replicate=stream.replicate,
        retention_age_ms=stream.retention.age,
        retention_bytes=stream.retention.bytes,
        hold_age_ms=stream.hold_for_zones.age,
        hold_bytes=stream.hold_for_zones.bytes,
        dedup_window_ms=stream.dedup.window,
        dedup_ids_max=stream.dedup.ids_max,
        outbox_bytes=stream.outbox.bytes,
        outbox_overflow=stream.outbox.overflow,
        outbox_stall_ms=stream.outbox.stall,
        geo_zones=stream.geo.zones,
        geo_timeout_ms=stream.geo.timeout,
        geo_on_timeout=stream.geo.on_timeout,
        covered=covered,
    )


def _user(user: schema.User) -> model.User:
    publish = user.permissions.publish or schema.PublishRule.empty()
    subscribe = user.permissions.subscribe or schema.SubscribeRule.empty()
    responses = user.permissions.allow_responses
    return model.User(
        account=user.account,
        user=user.user,
        password=user.password,
        token=user.token,
        nkey=user.nkey,
        role=user.role,
        publish_allow=publish.allow,
        publish_deny=publish.deny,
        subscribe_allow=subscribe.allow,
        subscribe_deny=subscribe.deny,
        allow_responses=model.Responses(max=responses.max, expires_ms=responses.expires) if responses else None,
        history=user.permissions.history,
    )


def _tls_clients(clients: schema.TlsClients) -> model.TlsClients:
    return model.TlsClients(
        cert=clients.cert,
        key=clients.key,
        ca=clients.ca,
        verify=clients.verify,
        first=clients.first,
        first_fallback_ms=clients.first_fallback,
        map=clients.map,
        timeout_ms=clients.timeout,
        allow_non_tls=clients.allow_non_tls,
    )
