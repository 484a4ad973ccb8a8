"""`python -m sinkd`: the same as the `sinkd` command."""

from mesh.cli import sinkd_main

sinkd_main()
