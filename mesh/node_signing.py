"""What a node signs with, and what it checks others' signatures by: the files of `[tls.nodes]`, as they are now.

Renewed files are taken up with the next signature, as `mesh.node_tls` does with the next handshake. New ones that are
of no use are logged, and the old ones stay.
"""

from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from mesh.node_tls import check_files, files_state, name_of
from protocol import config, signing
from protocol.config import TlsNodes
from protocol.coverage import Signed
from protocol.errors import ConfigError, SignatureError
from protocol.node_names import NodeName

log = structlog.get_logger()


class NodeSigning:
    """Signs as one node, and knows the authorities of its mesh."""

    def __init__(self, settings: TlsNodes, own: NodeName) -> None:
        """ConfigError: files that are of no use, or whose certificate is another node's, with what would be right."""
        self._files, self._own = settings.of(own.node), own
        self._seen = files_state(self._files)
        self._read()

    def _read(self) -> None:
        check_files(self._files, self._own)
        try:
            authorities = signing.read_authorities(Path(self._files.ca).read_bytes())
            certificate = x509.load_pem_x509_certificates(Path(self._files.cert).read_bytes())[0]
            key = load_pem_private_key(Path(self._files.key).read_bytes(), None)
            signing.sign(b"", key)
        except (OSError, ValueError, TypeError, SignatureError) as error:
            raise ConfigError([f"tls.nodes: {self._files.cert}, {self._files.key} cannot sign: {error}"]) from error
        self._authorities, self._key = authorities, key
        self._certificate = certificate.public_bytes(Encoding.DER)

    def _look(self) -> None:
        if (seen := files_state(self._files)) == self._seen:
            return
        self._seen = seen
        try:
            self._read()
        except ConfigError as error:
            log.error("signing_key_not_renewed", problems=error.problems)

    def sign(self, payload: bytes) -> Signed:
        """As the node."""
        self._look()
        return Signed(signing.sign(payload, self._key), self._certificate)

    def verify(self, payload: bytes, signed: Signed, at_ms: int) -> NodeName:
        """The node of this mesh that said so at that time. SignatureError: nobody did."""
        self._look()
        return signing.verify(payload, *signed, self._authorities, self._own.mesh, at_ms)


def signing_of(configuration: config.Config, node: str) -> NodeSigning | None:
    """None where links are plain, so that nobody has certificates. ConfigError: its files are of no use."""
    settings = configuration.tls_nodes
    return NodeSigning(settings, name_of(configuration, node)) if settings is not None else None
