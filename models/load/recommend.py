"""The cheapest GPU profile that serves a number of users, from uncertain latencies.

A *profile* is one pod: a GPU type and how many of it. A pod sustains as many users as keep every latency within its
limit, and so do all smaller numbers; n pods are needed where n times that reaches the demand. With one scenario, a
point prediction, the choice is the cheapest profile as LLM-Pilot makes it (arXiv 2410.02425 and its published code).
With several scenarios of the same prediction it is the one of the greatest expected value, where a choice that fails is
worth 0 and one that serves is worth 1 less its overspend, cost / cheapest possible cost - 1. That can favour a cheap
gamble where everything safe is dear: see its ``chance``.

That value is what LLM-Pilot's S/O score rewards, to first order: the score is the harmonic mean of the success rate S
and of 1 - O, O the mean overspend of successes; where S is near 1 - O, one more success with overspend o
raises it in proportion to 1 - o.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.errors import InfeasibleError, InputError
from qplan.models.steptimes import Floats


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A choice of profile.

    Attributes
    ----------
    profile
        Position of the chosen profile in what was passed.
    pods
        How many pods of it.
    users_per_pod
        Users that each pod must sustain: the smallest number of the grid that suffices.
    cost_per_hour
        Of all pods.
    chance
        Share of the scenarios in which the choice serves the demand.
    """

    profile: int
    pods: int
    users_per_pod: int
    cost_per_hour: float
    chance: float


def sustained_users(latency: Floats, limits: Sequence[float], users: Sequence[int]) -> Floats:
    """Return the most users of the grid up to which no latency exceeds its limit; 0 where the first one does.

    Parameters
    ----------
    latency : (..., U, M)
        By number of users and metric.
    limits : M numbers
        In the units of `latency`.
    users : U numbers
        Rising.
    """
    within = np.logical_and.accumulate((latency <= np.asarray(limits)).all(axis=-1), axis=-1).sum(axis=-1)
    result: Floats = np.concatenate([[0.0], np.asarray(users, dtype=float)])[within]
    return result


def recommend(
    latency: Floats, limits: Sequence[float], users: Sequence[int], prices_per_hour: Sequence[float], demand: int
) -> Recommendation:
    """Choose profile and number of pods for `demand` users.

    Parameters
    ----------
    latency : (S, P, U, M)
        Scenarios of the latency of each profile at each number of users, M metrics; S is 1 for a point prediction.
    limits : M numbers
        The greatest latency of each metric that is accepted, in the units of `latency`.
    users : U numbers
        Users of one pod, rising.
    prices_per_hour : P numbers
        Of one pod.
    demand
        Users to serve.

    Raises
    ------
    InputError
        Shapes do not match, or a number is out of range.
    InfeasibleError
        In no scenario does any profile keep the limits.
    """
    latency = np.asarray(latency, dtype=float)
    prices = np.asarray(prices_per_hour, dtype=float)
    grid = np.asarray(users, dtype=int)
    _check(latency, limits, grid, prices, demand)
    sustained = sustained_users(latency, limits, users)  # (S, P)
    with np.errstate(divide="ignore"):
        cheapest = (np.ceil(demand / sustained) * prices).min(axis=1)  # (S,)
    if not np.isfinite(cheapest).any():
        raise InfeasibleError(
            f"no profile keeps {', '.join(f'{limit:g}' for limit in limits)} even at {grid[0]} users a pod",
            constraint="slo",
            nearest=("raise the limits", "add larger profiles"),
        )
    pods = -(-demand // grid)  # (U,)
    cost = np.outer(prices, pods)  # (P, U)
    serves = pods * sustained[:, :, None] >= demand  # (S, P, U)
    value = np.where(serves, 2 - cost / cheapest[:, None, None], 0.0).mean(axis=0)
    value[~serves.any(axis=0)] = -np.inf
    # Of equal values the cheaper; rounding keeps sums over scenarios from deciding between equals.
    profile, size = min(np.ndindex(*value.shape), key=lambda at: (-round(float(value[at]), 9), cost[at]))
    return Recommendation(
        profile, int(pods[size]), int(grid[size]), float(cost[profile, size]), float(serves[:, profile, size].mean())
    )


def _check(latency: Floats, limits: Sequence[float], users: Floats, prices: Floats, demand: int) -> None:
    expected = ("scenarios", len(prices), len(users), len(limits))
    if latency.ndim != 4 or latency.shape[1:] != expected[1:] or not latency.size:
        raise InputError(
            f"latency is of shape {latency.shape}; expected {expected}: scenarios, profiles, users, metrics"
        )
    if np.isnan(latency).any():
        raise InputError("a latency is missing; give a profile that cannot run the model an infinite one")
    if not (np.isfinite(prices) & (prices > 0)).all():
        raise InputError("a price is not positive; expected the price of one pod per hour")
    if demand < 1 or users[0] < 1 or (np.diff(users) <= 0).any():
        raise InputError(f"demand={demand} and users={users.tolist()}: expected 1 or more, users of a pod rising")
