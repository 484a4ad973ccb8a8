"""The pages of the monitor port: what they are called, and how what stands behind the `?` is handed to the reports.

`/varz` belongs to every process; the others to one that runs a gateway, whose clients they show.
"""

from gateway.core import reports
from gateway.core.connections import ConnzOptions, connz
from gateway.core.nats_values import Building, Page
from gateway.core.reports import SubszOptions
from gateway.shell.gateway import Gateway
from gateway.shell.link import SinkLink
from mesh.monitor import Maker
from mesh.query import Query
from protocol.limits import TLS_TIMEOUT_MS


class GatewayPages:
    """The pages that show `gateway`. `varz` is its part of a page that others add to.

    `merges`: they go to the supervisor of several workers, who makes one of all.
    """

    def __init__(self, gateway: Gateway, *, merges: bool = False) -> None:
        self._gateway, self._merges = gateway, merges

    def by_path(self) -> dict[str, Maker]:
        """All but `/varz`."""
        return {
            "/connz": self.connz,
            "/accountz": self.accountz,
            "/subsz": self.subsz,
            "/routez": self.routez,
            "/leafz": self.leafz,
            "/gatewayz": self.gatewayz,
        }

    def varz(self) -> Page:
        gateway = self._gateway
        times = {"started_ms": gateway.started_ms, "loaded_ms": gateway.loaded_ms}
        page = reports.varz(gateway.plane, **times, moment=gateway.moment())
        page["write_deadline"] = gateway.configuration.limits.write_deadline_ms * 1_000_000
        tls = gateway.configuration.tls_clients
        page["tls_timeout"] = (TLS_TIMEOUT_MS if tls is None else tls.timeout_ms) / 1_000
        if tls is not None and not tls.allow_non_tls:
            page["tls_required"] = True
        if tls is not None and (tls.verify or tls.map):
            page["tls_verify"] = True
        if gateway.links is not None:
            page["sink_link"], *others = [_sink_link(each) for each in gateway.links]
            if others:
                page["sink_links"] = [page["sink_link"], *others]
        if gateway.spool is not None:
            page["spool"] = gateway.spool.varz()
        if gateway.links is not None or gateway.mesh is not None:
            page["configuration"] = _configuration(gateway)
        return page

    def connz(self, query: Query) -> Building:
        auth = query.boolean("auth")
        subscriptions, detail = query.subscriptions()
        options = ConnzOptions(
            auth=auth,
            subscriptions=subscriptions,
            detail=detail,
            offset=query.integer("offset"),
            limit=query.integer("limit"),
            id=query.unsigned("cid"),
            state=query.state(),
            sort=query.text("sort"),
            user=query.text("user"),
            account=query.text("acc"),
            merges=self._merges,
        )
        return connz(self._gateway.plane, self._gateway.closed, options, self._gateway.moment())

    def subsz(self, query: Query) -> Building:
        options = SubszOptions(
            subscriptions=query.boolean("subs"),
            offset=query.integer("offset"),
            limit=query.integer("limit"),
            test=query.text("test"),
            account=query.text("acc"),
        )
        return reports.subsz(self._gateway.plane, options, self._gateway.moment())

    def routez(self, query: Query) -> Page:
        query.subscriptions()
        links = None if self._gateway.mesh is None else self._gateway.mesh.report()
        return reports.routez(self._gateway.plane, self._gateway.moment(), links)

    def gatewayz(self, query: Query) -> Page:
        query.subscriptions()
        query.boolean("accs")
        return reports.gatewayz(self._gateway.plane, self._gateway.moment())

    def leafz(self, query: Query) -> Page:
        query.boolean("subs")
        return reports.leafz(self._gateway.plane, self._gateway.moment())

    def accountz(self, query: Query) -> Page:
        gateway = self._gateway
        name = query.text("acc")
        return reports.accountz(gateway.plane, name, started_ms=gateway.started_ms, moment=gateway.moment())


def _configuration(gateway: Gateway) -> Page:
    page: Page = {"revision": gateway.configuration.mesh.revision}
    if gateway.links is not None:
        page |= {"revision_in_force": gateway.outbox.revision, "not_in_force": gateway.not_in_force}
    if gateway.mesh is not None:
        page["differs"] = gateway.mesh.differing
    return page


def _sink_link(link: SinkLink) -> Page:
    return {
        "sink": link.sink,
        "connects": link.connects,
        "attempts_failed": link.failed_attempts,
        "problem": link.problem or "",
    }
