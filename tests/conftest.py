"""What holds for all tests."""

import os
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# A runner that was started in the background ignores Ctrl-C, and so would every process that a test starts and stops
# with it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast an example runs says nothing here: the machine is small and shared. CI looks at the same examples every time.
settings.register_profile(
    "mesh", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("mesh")


@pytest.fixture(autouse=True)
def logs_as_they_come() -> Iterator[None]:
    """A command that ran within a test has configured the logs of this process: the next test has them as ever."""
    yield
    structlog.reset_defaults()
