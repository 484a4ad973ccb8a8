"""Structured logs of the daemons: one event per line on stderr, as text for people or JSON for machines."""

import logging
import sys

import structlog


def configure(level: str, form: str, **always: int | str) -> None:
    """`level` is one of LOG_LEVELS, `form` one of LOG_FORMATS (`mesh.settings`). Call once, before anything logs.

    `always` stands in every line.
    """
    renderer: structlog.types.Processor = structlog.processors.JSONRenderer()
    if form == "text":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            lambda logger, method, event: {**always, **event},
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    # PySyncObj logs through the standard library; what it has to say is a warning or worse.
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
