"""Run directories made by hand; one thread a process and short samples for those made by training."""

from tests.sweeps.conftest import accurate, run  # noqa: F401 - fixtures
from tests.training.conftest import one_thread, short_samples  # noqa: F401 - fixtures
