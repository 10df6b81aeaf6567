"""The online rule as tables that the simulator's compiled loop evaluates."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qplan.core.errors import InputError
from qplan.core.policy import Policy
from qplan.models.simulator.dispatch import Ruled
from qplan.models.steptimes import Floats
from qplan.solvers.routing.online import (
    ASK_AGAIN_S,
    ASK_GAP_S,
    GAIN,
    PLANNED,
    RATE_S,
    RATIOS,
    SAVED,
    TROUGH,
    work,
)

SCRAPE_S = 1.0
"""How often a router reads the metrics of engines."""


def ruled(
    policy: Policy, gain: float = GAIN, *, routers: int = 1, scrape_s: float = SCRAPE_S, affinity: bool = True
) -> Ruled:
    """Return the dispatch of a policy for its replicas in order.

    Parameters
    ----------
    gain
        How fast predictions follow what is observed; 0: not at all.
    routers, scrape_s, affinity
        As in :class:`Ruled`. Each router takes the policy's levels for its part of the load.

    Raises
    ------
    InputError
        numba is missing.
    """
    try:
        from qplan.models.simulator.kernel import Rule
    except ImportError:
        raise InputError("simulating needs numba: pip install 'qplan[models]'") from None
    names = [one.name for one in policy.classes]
    quality = np.array([[group.quality.get(name, np.nan) for group in policy.groups] for name in names])
    class_of = np.array([names.index(bucket.request_class) for bucket in policy.buckets])
    price = np.array([[level.quality_price.get(name, 0.0) for name in names] for level in policy.levels])
    worth = price[:, class_of, None] * np.nan_to_num(quality)[None, class_of]  # (L, B, G)
    energy_j = np.array([group.energy_j for group in policy.groups]).T
    planned = np.where(
        np.array([level.shares for level in policy.levels]) >= PLANNED,
        np.array([level.serving for level in policy.levels])[:, None, :],
        0,
    )
    most = max(2, *(len(group.in_flight) for group in policy.groups))
    axis, step, tpot = (
        np.array([_filled(getattr(group, name), group.in_flight, most) for group in policy.groups])
        for name in ("in_flight", "step_s", "tpot_s")
    )
    among = np.array(
        [[_filled(row, group.in_flight, most) for row in group.energy_among_j] for group in policy.groups]
    )  # (G, B, F)
    rule = Rule(
        loads_qps=_floats(level.load_qps / routers for level in policy.levels),
        energy_j=energy_j,
        worth_j=worth,
        planned=planned,
        quality=quality,
        floor=_floats(one.quality_floor or 0.0 for one in policy.classes),
        deadline_s=_floats(one.deadline_s or 0.0 for one in policy.classes),
        bucket_class=class_of,
        expected_tokens=_floats(bucket.output_tokens for bucket in policy.buckets),
        longest_tokens=_floats(bucket.output_p90 for bucket in policy.buckets),
        work=_floats(work(policy)),
        ttft_s=_floats(one.threshold_s("ttft") for one in policy.classes),
        e2e_s=_floats(one.threshold_s("e2e") for one in policy.classes),
        prefill_s=_floats(group.prefill_s_per_token for group in policy.groups),
        prefill_j=_floats(group.prefill_j_per_token for group in policy.groups),
        kv_tokens=_floats(group.kv_tokens for group in policy.groups),
        max_sequences=_floats(group.max_sequences for group in policy.groups),
        in_flight=axis,
        step_s=step,
        tpot_s=tpot,
        among_j=among,
        full_tpot_s=_floats(group.full_tpot_s for group in policy.groups),
        waits=np.array([_padded(one.waits, max(len(one.waits) for one in policy.classes)) for one in policy.classes]),
        limits=_floats((policy.miss_j, policy.margin, SAVED, RATE_S, gain, *RATIOS)),
        patience=_floats((TROUGH, ASK_AGAIN_S, ASK_GAP_S, policy.horizon_s or np.inf)),
    )
    # In one layout, whatever the policy: for each other one the loop is compiled anew.
    rule = Rule._make(np.ascontiguousarray(values) for values in rule)
    return Ruled(np.array(policy.group_of), rule, routers, scrape_s, affinity)


def _floats(values: Iterable[float]) -> Floats:
    return np.array(list(values), np.float64)


def _filled(values: tuple[float, ...], axis: tuple[float, ...], length: int) -> list[float]:
    """Prolong the last segment to a common length, as the rule reads beyond the end."""
    rise = values[-1] - values[-2] if len(values) > 1 else values[-1]
    return [*values, *(values[-1] + rise * (n + 1) for n in range(length - len(axis)))]


def _padded(waits: tuple[tuple[float, float], ...], length: int) -> list[tuple[float, float]]:
    """Repeat the last pair to a common length, of one pair at least; nothing waits by times that never come."""
    last = waits[-1] if waits else (np.inf, 0.0)
    return [*waits, *(last for _ in range(max(length, 1) - len(waits)))]
