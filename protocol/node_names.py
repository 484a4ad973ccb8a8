"""Who a node is, as its certificate says: one URI among the alternative names.

mesh://<mesh>/<zone>/<gateway or sink>/<node>
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from protocol.errors import FrameError

SCHEME: Final = "mesh://"
GATEWAY: Final = "gateway"
SINK: Final = "sink"
"""Roles."""
_URI: Final = re.compile(rf"{SCHEME}([\w-]+)/([\w-]+)/({GATEWAY}|{SINK})/([\w-]+)", re.ASCII)


class NodeName(NamedTuple):
    """Who a node is; as a text, the URI in its certificate. `role` is `gateway` or `sink`."""

    mesh: str
    zone: str
    role: str
    node: str

    def __str__(self) -> str:
        return SCHEME + "/".join(self)


def node_named(uris: Iterable[str]) -> NodeName:
    """The node that a certificate with these URIs is for. FrameError: it is for none, or for several."""
    names = [uri for uri in uris if uri.startswith(SCHEME)]
    if len(names) != 1:
        raise FrameError(
            f"the certificate names {len(names) or 'no'} nodes of a mesh; expected one URI {SCHEME}MESH/ZONE/ROLE/NODE"
        )
    match = _URI.fullmatch(names[0])
    if match is None:
        raise FrameError(f"the certificate names {names[0]}; expected {SCHEME}MESH/ZONE/gateway|sink/NODE")
    return NodeName(*match.groups())
