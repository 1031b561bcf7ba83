"""The log line of hydra/launcher=gpus at the end of a job."""

import json

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from hydra_plugins.chargpt_ray_launcher import _JobStatus


@pytest.mark.parametrize(
    ("metrics", "state", "message"),
    [
        ({"val_loss": 1.25}, "finished", "#3 finished  seed=1   validation loss 1.2500   (1 of 2 done)"),
        ({"val_loss": 1.25, "monitor": "accuracy", "mode": "max", "score": 0.5}, "finished",
         "#3 finished  seed=1   accuracy 0.5000   (1 of 2 done)"),
        (None, "pruned", "#3 pruned  seed=1   others were better   (1 of 2 done)"),
    ],
)  # fmt: skip
def test_the_result_of_a_job_is_logged_in_one_line(tmp_path, caplog, metrics, state, message):
    hydra = {"overrides": {"task": ["resume=auto", "seed=1"]}, "sweep": {"dir": str(tmp_path), "subdir": "job"}}
    (tmp_path / "job").mkdir()
    status = {"state": state, "step": 5, "time": 0.0, "reason": "others were better"}
    (tmp_path / "job" / "status.json").write_text(json.dumps(status))
    result = {"directory": str(tmp_path / "job"), "code": 0, "metrics": metrics, "reason": ""}
    caplog.set_level("INFO")
    _JobStatus(3, OmegaConf.create({"hydra": hydra}), set()).log_result(
        JobReturn(_return_value=result, status=JobStatus.COMPLETED), "1 of 2"
    )
    assert caplog.messages == [message]
