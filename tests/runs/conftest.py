"""Fixtures: run directories without training; one thread per process and short samples for trained ones."""

from tests.sweeps.conftest import accurate, run  # noqa: F401 - fixtures
from tests.training.conftest import one_thread, short_samples  # noqa: F401 - fixtures
