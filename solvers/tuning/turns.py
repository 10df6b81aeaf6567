"""Several workers on one study: who chooses next, who holds what, and who is dead.

Nothing but the study's storage is shared, and of that only what every Optuna storage has: numbers in order, and a state
that one worker alone can end. So it works on SQLite, on a journal file and on PostgreSQL::

    ask: a number ──► sign it ──► wait until all earlier ones have chosen ──► choose ──► claim ──► measure
                                  signs of life, all the while                     (Lamport's bakery)

- The number is the ticket: a trial chooses when no earlier one is still to choose. Whoever chooses sees every claim
  before it, so no configuration is claimed twice. Choosing takes a moment, measuring minutes: waiting costs little.
- A worker raises a counter in its trial now and then. Who has not seen it rise for `grace_s`, by its own clock, or
  finds the process gone on its own host, ends the trial as failed and queues its configuration again. Ending is the
  storage's to decide: of several who try one succeeds, and only that one queues.
- What was queued again is claimed only after a look that no other holds it by now.

Trials without a worker's sign are of somebody who uses Optuna's API: they are never ended.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from qplan.solvers.tuning.study import CONFIGURATION, INFEASIBLE, REASON, configuration_of, is_infeasible

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

WORKER, BEAT, RETRY_OF, TRIES = "qplan:worker", "qplan:beat", "retry_of", "qplan:tries"

BEAT_S = 10.0
GRACE_S = 60.0
MOST_TRIES = 3
"""Times that a configuration is begun whose workers die: who takes the machine down thrice is left alone."""

_POLL_S = 0.1


class Life:
    """Signs of life of the trial that this worker holds; a context manager that starts and ends the thread.

    Attributes
    ----------
    lost
        Whether somebody else has ended the trial that is held.
    """

    def __init__(self, study: Study, beat_s: float = BEAT_S) -> None:
        self.lost = False
        self._storage = study._storage
        self._beat_s = beat_s
        self._held: int | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="qplan-life", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def hold(self, trial: Trial) -> None:
        """Sign a trial, and keep it alive until :meth:`release`."""
        trial.set_user_attr(WORKER, _this_worker())
        with self._lock:
            self.lost, self._held = False, trial._trial_id

    def release(self) -> None:
        """Let go of the trial."""
        with self._lock:
            self._held = None

    def _beat(self) -> None:
        from optuna.exceptions import OptunaError

        count = 0
        while not self._over.wait(self._beat_s):
            with self._lock:
                if self._held is None or self.lost:
                    continue
                count += 1
                try:
                    self._storage.set_trial_user_attr(self._held, BEAT, count)
                except RuntimeError:  # of Optuna: the trial is finished
                    self.lost = True
                except OptunaError:
                    continue  # the storage is away for a moment; others are patient for several beats
        self._storage.remove_session()  # this thread's own


class Vigil:
    """Watches the trials of others, and queues again what the dead have left."""

    def __init__(self, study: Study, grace_s: float = GRACE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._study = study
        self._grace_s = grace_s
        self._clock = clock
        self._seen: dict[int, tuple[Any, float]] = {}

    def look(self, mine: int | None = None) -> list[FrozenTrial]:
        """Retire the dead; return the trials that others hold or are still to choose.

        Parameters
        ----------
        mine
            Number of the trial that this worker holds.
        """
        from optuna.trial import TrialState

        alive = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number == mine:
                continue
            if WORKER in trial.user_attrs and self._is_dead(trial):
                retire(self._study, trial)
            else:
                alive.append(trial)
        return alive

    def is_silent(self, trial: FrozenTrial) -> bool:
        """Whether nothing has been heard of a trial for too long."""
        sign = trial.user_attrs.get(BEAT), len(trial.params), WORKER in trial.user_attrs
        now = self._clock()
        before = self._seen.get(trial.number)
        if before is None or before[0] != sign:
            self._seen[trial.number] = sign, now
            return False
        return now - before[1] > self._grace_s

    def _is_dead(self, trial: FrozenTrial) -> bool:
        silent = self.is_silent(trial)
        return silent or _is_gone(trial.user_attrs[WORKER])


def await_turn(
    vigil: Vigil,
    trial: FrozenTrial | Trial,
    *,
    stopping: Callable[[], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until every trial that comes before this one has chosen, or the user asks for an end.

    One that was queued with its configuration waits for all others: its choice was made by somebody else, at a time
    when they may not have seen it.
    """
    chosen = configuration_of(trial) is not None  # type: ignore[arg-type]
    while not stopping():
        ahead = [
            other
            for other in vigil.look(trial.number)
            if _is_choosing(other, vigil) and (chosen or other.number < trial.number)
        ]
        if not ahead:
            return
        sleep(_POLL_S)


def holder_of(study: Study, configuration: str, but: int) -> FrozenTrial | None:
    """Return a trial other than number `but` that measures, or has measured, a configuration."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False):
        holds = trial.state in (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED) or is_infeasible(trial)
        if holds and trial.number != but and configuration_of(trial) == configuration:
            return trial
    return None


def retire(study: Study, trial: FrozenTrial) -> bool:
    """End the trial of a dead worker, and queue its configuration again; return whether it was this call that did."""
    import optuna
    from optuna.trial import TrialState

    tries = int(trial.user_attrs.get(TRIES, 1))
    held = configuration_of(trial)
    try:
        study._storage.set_trial_user_attr(trial._trial_id, REASON, "its worker died")
        if held is not None and tries >= MOST_TRIES:
            why = f"its worker died {tries} times while measuring it"
            study._storage.set_trial_user_attr(trial._trial_id, INFEASIBLE, why)
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, RuntimeError):  # of Optuna: it is finished, since another worker was first
        return False
    if held is not None and tries < MOST_TRIES:
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={CONFIGURATION: held, RETRY_OF: trial.number, TRIES: tries + 1},
                system_attrs={"fixed_params": trial.params},
            )
        )
    return True


def _is_choosing(trial: FrozenTrial, vigil: Vigil) -> bool:
    """Whether a trial that runs has yet to say what it measures."""
    if configuration_of(trial) is not None:
        return False
    if WORKER in trial.user_attrs:
        return True
    return not trial.params and not vigil.is_silent(trial)  # of somebody who uses Optuna's API


def _this_worker() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}


def _is_gone(worker: dict[str, Any]) -> bool:
    """Whether a worker of this host has ended; of other hosts only silence tells."""
    return bool(worker["host"] == socket.gethostname() and _started(worker["pid"]) != worker["started"])


def _started(pid: int) -> float | None:
    """Return when a process of this host began, so that a number used again is not taken for it."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None
