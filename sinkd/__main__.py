"""`python -m sinkd`: the same as the `sinkd` command."""

import sys

from mesh.cli import sinkd_main

sys.exit(sinkd_main())
