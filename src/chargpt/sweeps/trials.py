"""Which trials of a study count: all that have ended, but for those that were cut off or drawn in vain."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

# Attributes of a trial.
CUT_OFF = "cut off"  # it does not count
INSTEAD_OF = "instead of"  # the number of a trial that was cut off, which this one makes up for


def counted_trials(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """The trials that have ended and count."""
    trials, replaced = study.get_trials(deepcopy=False), _replaced(study)
    ended = [trial for trial in trials if trial.state.is_finished()]
    return [trial for trial in ended if CUT_OFF not in trial.user_attrs and trial.number not in replaced]


def replace_interrupted_trials(study: "optuna.Study") -> None:
    """Fails each trial that is running, and enqueues another one with the same values.

    Called while no process runs trials of the study. Optuna's heartbeat works under `Study.optimize` only.
    """
    from optuna.trial import TrialState

    replaced = _replaced(study)
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if trial.number not in replaced:
            study.enqueue_trial(trial.params, user_attrs={INSTEAD_OF: trial.number})
        study.tell(trial.number, state=TrialState.FAIL)
        log.info("trial %d was cut off: another one with the same values goes on with it", trial.number)


def _replaced(study: "optuna.Study") -> set[int]:
    """The numbers of the trials that others make up for."""
    trials = study.get_trials(deepcopy=False)
    return {trial.user_attrs[INSTEAD_OF] for trial in trials if INSTEAD_OF in trial.user_attrs}
