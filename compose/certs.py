"""Makes the certificates of all nodes that have none yet, and of the authority: a node that is added gets its own.

Nodes read them as members of group `mesh`; the authority's key is read by the user that runs this alone.
"""

import sys
from pathlib import Path

from mesh import authority
from mesh.commands import certs
from protocol import config

DAYS = 365


def main(file: str) -> None:
    configuration = config.parse(Path(file).read_text(), file)
    files = authority.node_files(configuration)
    assert configuration.tls_nodes is not None
    if not Path(configuration.tls_nodes.ca).exists():
        certs.init(configuration, DAYS, force=True)  # what a start that was cut off has left is made anew
    for node, own in files.items():
        if not (Path(own.cert).exists() and Path(own.key).exists()):
            certs.issue(configuration, node, DAYS, force=True)
        Path(own.key).chmod(0o640)


main(sys.argv[1])
