"""What paired metrics are measured beside: the results of the unquantized model, judged once on a machine and kept.

KL divergence and top-1 agreement compare a quantized model with the unquantized one of the same engine, token by
token. A study judges that one before the first configuration that needs it, or keeps what it found where the
unquantized model is a configuration itself; every worker of the machine then reads it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.campaign.events import Result
from qplan.measure.campaign.grid import gpu_refusal
from qplan.measure.campaign.points import Point
from qplan.measure.engines import open_engine
from qplan.solvers.tuning.measuring import Halted
from qplan.solvers.tuning.space import Configuration, combinations
from qplan.solvers.tuning.tunefile import Tuning

_POLL_S = 0.2

Kept = Mapping[str, Any]


def check_baselines(tuning: Tuning, configurations: Sequence[Configuration]) -> None:
    """Refuse a study in which something has nothing to be compared with.

    Raises
    ------
    InputError
        With the line of the metric.
    """
    each = next((each for each in tuning.quantities if each.paired), None)
    if each is None:
        return
    unquantized = {_served(one) for one in configurations if one.target.is_unquantized}
    for one in configurations:
        if _served(one) not in unquantized:
            raise InputError(
                f"{tuning.places[each.name]}: {each.metric} is measured beside the unquantized model; add one of BF16, "
                f"FP16 and F16 to the quantizations of {one.target.model} on {one.target.engine}"
            )


class Baselines:
    """Results of unquantized models by task, in a folder of this machine.

    Attributes
    ----------
    tasks
        Those that compare with the unquantized model.
    """

    def __init__(self, tuning: Tuning, folder: Path) -> None:
        self._space = tuning.space
        self._folder = folder
        self.tasks = tuple(dict.fromkeys(each.task for each in tuning.quantities if each.paired))

    def beside(self, one: Configuration) -> Configuration | None:
        """Return the unquantized configuration most like `one`; ``None`` where nothing is compared."""
        if not self.tasks:
            return None
        others = [
            other
            for other in combinations(self._space)
            if other.target.is_unquantized
            and _served(other) == _served(one)
            and gpu_refusal(other.gpu, other.target) is None
        ]
        return min(others, key=lambda other: (other.target.settings != one.target.settings, abs(other.gpus - one.gpus)))

    def results(
        self, points: Mapping[str, Point], measure: Callable[[Point], Result], stopping: Callable[[], bool]
    ) -> dict[str, Kept]:
        """Return the results of unquantized models, by task; those that nobody has kept are measured.

        Parameters
        ----------
        points
            What judges the unquantized model, by task.

        Raises
        ------
        MeasurementError
            It cannot be judged.
        Halted
            The user asked for an end.
        """
        found: dict[str, Kept] = {}
        for task, point in points.items():
            path = self._path(point)
            with _alone(path, stopping):
                if not path.is_file():
                    result = measure(point)
                    if result.state != "done":
                        raise MeasurementError(f"{point}, which others are compared with: {result.reason}")
                    self.keep(point, result)
                found[task] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def keep(self, point: Point, result: Result) -> None:
        """Keep what an unquantized model was judged to be, for others to be compared with."""
        path = self._path(point)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(dict(result.metrics or {})), encoding="utf-8")
        os.replace(part, path)

    def _path(self, point: Point) -> Path:
        """Return where results are kept: whatever TP, settings and slots the model was served with."""
        alike = replace(point, target=replace(point.target, settings={}, tp=1, max_sequences=1))
        version = open_engine(point.target.engine).version()
        return self._folder / f"{point.target.model}-{version}-{alike.key[:16]}.json".replace("/", "-")


def _served(one: Configuration) -> tuple[str, str]:
    return one.target.model, one.target.engine


@contextmanager
def _alone(path: Path, stopping: Callable[[], bool]) -> Iterator[None]:
    """Let one worker of this machine at a time measure what is kept at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:  # let go of by the kernel when its holder is killed
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stopping():
                    raise Halted from None
                time.sleep(_POLL_S)
        yield
