"""MLflow logger: metrics, hyperparameters, and samples as artifacts."""

import os
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only


class MLflow(MLFlowLogger):
    """Lightning's MLflow logger, with text.

    Args:
        save_dir: folder for the runs, unless MLFLOW_TRACKING_URI names a server.
        run_id: the run to continue.
        settings: further arguments of `MLFlowLogger`.
    """

    def __init__(self, save_dir: str, run_id: str | None = None, **settings: Any):
        # MLflow 3 prefers databases, which mlflow-skinny does not support, and refuses folders without this variable.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        super().__init__(save_dir=save_dir, run_id=run_id, **settings)

    @rank_zero_only
    def log_text(self, name: str, text: str, step: int) -> None:
        """Saves text as an artifact."""
        self.experiment.log_text(self.run_id, text, f"{name}/step_{step}.txt")
