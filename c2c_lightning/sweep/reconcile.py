"""Study and ledger made to agree, after a kill that came between what is written to one and to the other."""

from __future__ import annotations

import math

import optuna
from optuna.trial import FrozenTrial, TrialState

from c2c_lightning.runs import SUMMARY_FILE
from c2c_lightning.sweep.halving import verdict
from c2c_lightning.sweep.ledger import ENDED, Ledger
from c2c_lightning.sweep.search import reopened, tell
from c2c_lightning.sweep.settings import Sweep
from c2c_lightning.sweep.trial import Trial


def reconcile(study: optuna.Study, ledger: Ledger, sweep: Sweep) -> list[Trial]:
    """Tells each of study and ledger of the trials of which only the other knows that they have ended.

    Trials that failed wait again: they are tried once more, from their last checkpoint if they have one.

    Args:
        study: of a sweep that is resumed, before it hands out trials.
        ledger: of the sweep.
        sweep: its settings.

    Returns:
        The trials of which the ledger says something else now.
    """
    changed = []
    for frozen in study.get_trials():
        trial = ledger.trials.get(frozen.number)
        if trial is None:  # killed before it had a folder; it gets one when it is handed out
            continue
        if frozen.state.is_finished() and trial.state not in ENDED:
            changed.append(note_end(ledger, trial, frozen, sweep))
        elif frozen.state == TrialState.RUNNING and trial.state == "failed":
            changed.append(ledger.note(trial.number, "waiting", f"tried again; it had failed: {trial.reason}"))
        elif frozen.state == TrialState.RUNNING and trial.state in ENDED:
            score = trial.score(sweep.metric)
            tell(reopened(study, frozen), trial.state == "finished", trial.step, math.nan if score is None else score)
    return changed


def note_end(ledger: Ledger, trial: Trial, frozen: FrozenTrial, sweep: Sweep) -> Trial:
    """Notes in the ledger how a trial ended by the study."""
    # One that finished with a score that is not finite is, to the study, a bad one.
    if frozen.state == TrialState.COMPLETE or (trial.folder / SUMMARY_FILE).exists():
        return ledger.note(trial.number, "finished")
    if frozen.state == TrialState.PRUNED:
        step = frozen.last_step
        reason = verdict(sweep.asha, step, frozen.intermediate_values[step])
        return ledger.note(trial.number, "stopped", reason, stopped_at=step)
    return ledger.note(trial.number, "failed", "the search has given it up")
