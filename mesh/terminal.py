"""Where commands print their tables: a terminal, at its width, or a file or pipe, where nothing is cut."""

import sys

from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 1_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more: the command line says what that means (`mesh.cli`), not rich."""
        self.quiet = True
        raise BrokenPipeError


def console() -> Console:
    """Of standard output."""
    return _Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
