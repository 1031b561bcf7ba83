"""Which trials of a study count: all finished ones, except interrupted trials and repeated draws."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

# Keys of a trial's user attributes. Studies of earlier versions contain them.
NOT_COUNTED = "cut off"
REPLACES = "instead of"  # the number of the interrupted trial that this one replaces


def counted_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The finished trials that count."""
    trials, replaced = study.get_trials(deepcopy=False), _replaced(study)
    finished = [trial for trial in trials if trial.state.is_finished()]
    return [trial for trial in finished if NOT_COUNTED not in trial.user_attrs and trial.number not in replaced]


def replace_interrupted_trials(study: "optuna.Study") -> None:
    """Marks each running trial as failed, and enqueues a new one with the same values.

    Call it only while no process runs trials of the study. Optuna's heartbeat works only with `Study.optimize`.
    """
    from optuna.trial import TrialState  # noqa: PLC0415 - optional dependency

    replaced = _replaced(study)
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trial.number not in replaced:
            study.enqueue_trial(trial.params, user_attrs={REPLACES: trial.number})
        study.tell(trial.number, state=TrialState.FAIL)
        log.info("trial %d was interrupted: a new trial with the same values resumes its run", trial.number)


def _replaced(study: "optuna.Study") -> set[int]:
    """The numbers of the interrupted trials that have a replacement."""
    trials = study.get_trials(deepcopy=False)
    return {trial.user_attrs[REPLACES] for trial in trials if REPLACES in trial.user_attrs}
