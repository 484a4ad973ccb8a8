"""What a gateway knows of the encryption of one client connection: a value that the shell makes and hands in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """Names in a client certificate that was verified. `subject` is the distinguished name as RFC 4514 writes it."""

    emails: tuple[str, ...]
    dns_names: tuple[str, ...]
    uris: tuple[str, ...]
    subject: str


@dataclass(frozen=True, slots=True)
class Encryption:
    """`version` and `cipher` as nats-server spells them: `1.3`, `TLS_AES_128_GCM_SHA256`.

    `first`: the handshake came before INFO. `certificate` is None where none is asked for.
    """

    version: str
    cipher: str
    first: bool
    certificate: PeerCertificate | None = None
