"""How long a campaign takes: its own past where there is one, the plan's durations where there is none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from qplan.measure.campaign.phases import companion_s
from qplan.measure.campaign.points import LOAD, QUALITY, SATURATION, Point, Target
from qplan.measure.campaign.rig import IDLE_S

if TYPE_CHECKING:
    from qplan.measure.campaign.grid import Block
    from qplan.measure.campaign.plan import CampaignPlan

START_S = {"llamacpp": 10.0, "remote": 1.0}
OTHER_START_S = 90.0  # vLLM and its like load and warm up for one to three minutes
SEARCH_S = 120.0
TASK_S = 180.0


class Estimate:
    """Expected times of a plan's points.

    Parameters
    ----------
    plan
        The plan.
    measured_s
        How long points that are closed took, by their kind.
    """

    def __init__(self, plan: CampaignPlan, measured_s: Iterable[tuple[Point, float]] = ()) -> None:
        self._plan = plan
        taken: dict[str, list[float]] = defaultdict(list)
        for point, seconds in measured_s:
            taken[point.kind].append(seconds)
        self._mean_s: Mapping[str, float] = {kind: sum(times) / len(times) for kind, times in taken.items()}

    def point_s(self, point: Point) -> float:
        """Return the expected time of a point in seconds."""
        if point.kind in self._mean_s:
            return self._mean_s[point.kind]
        if point.kind == SATURATION:
            return min(SEARCH_S, self._plan.deadlines.saturation_s)
        if point.kind == QUALITY:
            return min(TASK_S, self._plan.deadlines.quality_s)
        assert point.kind == LOAD
        told_apart = self._plan.phase_energy and self._reads_energy(point.target)
        energy_s = companion_s(point.warm_up_s) if told_apart else 0.0
        if point.duration_s is not None:
            return point.duration_s + 2.0 + energy_s
        assert point.requests is not None
        return point.requests / (point.qps or 1.0) + 2.0 + energy_s

    def start_s(self, target: Target) -> float:
        """Return the expected time until an engine serves and its idle power is known, in seconds."""
        start_s = START_S.get(target.engine, OTHER_START_S)
        return start_s + (IDLE_S if self._reads_energy(target) else 0.0)

    def total_s(self, blocks: Iterable[Block], is_open: Mapping[str, bool]) -> float:
        """Return the expected time of what is open, engine starts included, one block after the other but for GPUs.

        Parameters
        ----------
        is_open
            Whether each point, by key, is still to be measured.
        """
        total = 0.0
        for block in blocks:
            points = [point for point in block.points if is_open[point.key]]
            if points:
                share = block.target.tp / len(self._plan.devices) if self._plan.devices else 1.0
                total += share * (self.start_s(block.target) + sum(map(self.point_s, points)))
        return total

    def _reads_energy(self, target: Target) -> bool:
        """Whether GPUs of this plan serve a deployment, whose energy is measured; a CPU's counter is rarely there."""
        return self._plan.energy and bool(self._plan.devices) and target.engine != "remote"
