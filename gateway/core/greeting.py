"""INFO: what a gateway says of itself to its clients, when they come and whenever it changes."""

from collections.abc import Sequence
from typing import Any, Final

from gateway.core.identity import Directory
from gateway.core.plane_options import PlaneOptions
from gateway.core.session import Session

PROTOCOL_VERSION: Final = "2.12.0"
"""The nats-server release whose client protocol this is: clients unlock features by it."""


def info(
    options: PlaneOptions,
    directory: Directory,
    session: Session,
    *,
    port: int,
    connect_urls: Sequence[str],
    greets: bool = False,
) -> dict[str, Any]:
    """What INFO says to `session`; the one that `greets` asks for credentials only where they are needed, and has the
    nonce."""
    values: dict[str, Any] = {
        "server_id": options.server_id,
        "server_name": options.server_name,
        "version": PROTOCOL_VERSION,
        "proto": 1,
        "git_commit": f"event-mesh-{options.server_version}".rstrip("-"),
        "go": "",
        "host": options.host,
        "port": port,
        "headers": True,
    }
    for name, holds in (
        ("auth_required", directory.asks if greets else directory.is_required),
        ("tls_required", options.tls_required),
        ("tls_verify", options.tls_verify),
        ("tls_available", options.tls_available),
    ):
        if holds:
            values[name] = True
    values |= {
        "max_payload": options.max_payload_bytes,
        "client_id": session.id,
        "client_ip": session.client_ip,
    }
    if greets and session.nonce:
        values["nonce"] = session.nonce
    if connect_urls:
        values["connect_urls"] = connect_urls
    return values
