"""MLflow logger: metrics, hyperparameters, and samples as artifacts."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

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
        """Saves text as an artifact.

        Raises:
            ValueError: a run in a folder has its artifacts elsewhere, because the folder was moved or is a stranger's.
        """
        uri = urlparse(self.experiment.get_run(self.run_id).info.artifact_uri)
        if str(self._tracking_uri).startswith("file:"):
            folder = Path(str(self._tracking_uri).removeprefix("file:")).resolve()
            if uri.scheme not in ("", "file") or not Path(url2pathname(uri.path)).resolve().is_relative_to(folder):
                raise ValueError(f"the artifacts of this run are in {uri.geturl()}, not in {folder}")
        self.experiment.log_text(self.run_id, text, f"{name}/step_{step}.txt")
