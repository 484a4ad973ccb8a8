"""`python -m gateway`: the same as the `gateway` command."""

import sys

from mesh.cli import gateway_main

sys.exit(gateway_main())
