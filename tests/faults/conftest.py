"""Helpers of the campaign of faults."""

import os
import signal
from collections.abc import Iterator

import pytest

from inline import command  # noqa: F401

#: Seconds of a try; one that takes longer hangs and has not held.
LIMIT = float(os.environ.get("FAULTS_LIMIT", 900))


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    """Ends a try that hangs."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"no end within {LIMIT:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
