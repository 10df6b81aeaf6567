"""The online rule as tables that the simulator's compiled loop evaluates."""

from __future__ import annotations

import numpy as np

from qplan.core.policy import Policy
from qplan.models.simulator.dispatch import Ruled
from qplan.solvers.routing.online import GAIN, PLANNED, RATE_S, RATIOS, SAVED, work


def ruled(policy: Policy, gain: float = GAIN) -> Ruled:
    """Return the dispatch of a policy for its replicas in order.

    Parameters
    ----------
    gain
        How fast predictions follow what is observed; 0: not at all.
    """
    names = [one.name for one in policy.classes]
    quality = np.array([[group.quality.get(name, np.nan) for group in policy.groups] for name in names])
    class_of = np.array([names.index(bucket.request_class) for bucket in policy.buckets])
    price = np.array([[level.quality_price.get(name, 0.0) for name in names] for level in policy.levels])
    worth = price[:, class_of, None] * np.nan_to_num(quality)[None, class_of]  # (L, B, G)
    energy_j = np.array([group.energy_j for group in policy.groups]).T
    planned = np.array([level.shares for level in policy.levels]) >= PLANNED
    most = max(2, *(len(group.in_flight) for group in policy.groups))
    axis, step, tpot = (
        np.array([_filled(getattr(group, name), group.in_flight, most) for group in policy.groups])
        for name in ("in_flight", "step_s", "tpot_s")
    )
    among = np.array(
        [[_filled(row, group.in_flight, most) for row in group.energy_among_j] for group in policy.groups]
    )  # (G, B, F)
    tpot_s = min(one.threshold_s("tpot") for one in policy.classes)
    return Ruled(
        groups=np.array(policy.group_of),
        loads_qps=np.array([level.load_qps for level in policy.levels]),
        energy_j=energy_j,
        worth_j=worth,
        planned=planned,
        quality=quality,
        floor=np.array([one.quality_floor or 0.0 for one in policy.classes]),
        bucket_class=class_of,
        expected_tokens=np.array([bucket.output_tokens for bucket in policy.buckets]),
        longest_tokens=np.array([bucket.output_p90 for bucket in policy.buckets]),
        work=np.array(work(policy)),
        ttft_s=np.array([one.threshold_s("ttft") for one in policy.classes]),
        e2e_s=np.array([one.threshold_s("e2e") for one in policy.classes]),
        prefill_s=np.array([group.prefill_s_per_token for group in policy.groups]),
        kv_tokens=np.array([group.kv_tokens for group in policy.groups]),
        max_sequences=np.array([group.max_sequences for group in policy.groups], dtype=float),
        in_flight=axis,
        step_s=step,
        tpot_s=tpot,
        among_j=among,
        limits=np.array([tpot_s, policy.miss_j, policy.margin, SAVED, RATE_S, gain, *RATIOS]),
    )


def _filled(values: tuple[float, ...], axis: tuple[float, ...], length: int) -> list[float]:
    """Prolong the last segment to a common length, as the rule reads beyond the end."""
    rise = values[-1] - values[-2] if len(values) > 1 else values[-1]
    return [*values, *(values[-1] + rise * (n + 1) for n in range(length - len(axis)))]
