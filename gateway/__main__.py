"""`python -m gateway`: the same as the `gateway` command."""

from mesh.cli import gateway_main

gateway_main()
