"""Energy of prefill and of decode: beside a load, a companion run that prefills alone.

::

    the load: prefill and decode          its companion: prefill alone
    │ warm-up │ energy, tokens │ drain │  │ warm-up │ energy, tokens, 30 s │ drain │

The companion sends the load's mix at the load's rate, but asks for one token, which prefill yields. Two windows with
different shares of both give the two energies, by :func:`qplan.measure.energy.per_token.separate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.campaign.traffic import schedule_and_prompts
from qplan.measure.energy.meter import SHORT_WINDOW_S, EnergyReading
from qplan.measure.energy.per_token import PhaseEnergy, TokenWindow, separate

if TYPE_CHECKING:
    from qplan.measure.campaign.points import Point
    from qplan.measure.campaign.rig import Rig
    from qplan.measure.load.metrics import Window
    from qplan.measure.load.prompts import Prompt
    from qplan.measure.load.requests import Floats, Requests

PREFILL_S = SHORT_WINDOW_S
"""Steady part of a companion: the shortest window that needs no repeating."""

_OTHER_SEED = 1_000_000  # beyond those of repeats: the server's cache may hold prompts that were sent before


@dataclass(frozen=True, slots=True)
class SteadyRun:
    """What was sent, the part of it in which the load was steady, and the energy of that part."""

    requests: Requests
    window: Window
    energy: EnergyReading


def steady_run(rig: Rig, requests: Requests, warm_up_s: float | None) -> SteadyRun:
    """Read the energy of the steady part of a run that is over."""
    from qplan.measure.load.metrics import steady_window

    window = steady_window(requests, warm_up_s)
    start_s, end_s = requests.origin_s + window.start_s, requests.origin_s + window.end_s
    if not end_s > start_s:
        return SteadyRun(requests, window, EnergyReading(start_s, end_s, "none", note="no request after the warm-up"))
    return SteadyRun(requests, window, rig.meter.between(start_s, end_s))


def companion_s(warm_up_s: float | None) -> float:
    """Return how long the companion of a load sends."""
    return (warm_up_s or 0.0) + PREFILL_S


def tell_apart(
    point: Point,
    rig: Rig,
    rate_qps: float | None,
    load: SteadyRun,
    offer: Callable[[Floats, list[Prompt]], Requests],
) -> PhaseEnergy:
    """Run the companion of a load and return the energy of each phase; whatever is in the way becomes the note.

    Parameters
    ----------
    rate_qps
        Rate of the load; ``None`` for a replay.
    load
        What was measured.
    offer
        Sends prompts on a schedule, and returns what happened when the server is idle again.
    """
    if load.energy.energy_j is None:
        return PhaseEnergy()  # its note says why
    if rig.idle_power_w is None:
        return separate((), None)
    try:
        mixed = with_tokens(load)
        schedule_s, asked = _one_token_each(point, rig, rate_qps)
        alone = steady_run(rig, offer(schedule_s, asked), point.warm_up_s)
        return separate([mixed, with_tokens(alone)], rig.idle_power_w)
    except (InputError, MeasurementError) as error:
        return PhaseEnergy(note=f"prefill and decode not told apart: {error}")


def _one_token_each(point: Point, rig: Rig, rate_qps: float | None) -> tuple[Floats, list[Prompt]]:
    """Return when the companion of a load sends, and what."""
    seed = point.seed + _OTHER_SEED
    companion = replace(point, duration_s=companion_s(point.warm_up_s), requests=None, seed=seed)
    schedule_s, asked = schedule_and_prompts(companion, rig, rate_qps)
    return schedule_s, [replace(prompt, output_tokens=1) for prompt in asked]


def with_tokens(run: SteadyRun) -> TokenWindow:
    """Count what was prefilled and decoded in the steady part of a run."""
    import numpy as np

    from qplan.measure.load.metrics import tokens_within
    from qplan.measure.load.requests import NOT_SAID

    requests, window = run.requests, run.window
    if run.energy.energy_j is None:
        raise MeasurementError(f"prefill alone: {run.energy.note}")
    # An answer without text has no first token, and yet its prompt was prefilled.
    prefilled = window.holds(np.where(np.isnan(requests.first_token_s), requests.end_s, requests.first_token_s))
    unknown = int((prefilled & (requests.input_tokens == NOT_SAID)).sum())
    generated = tokens_within(requests, window)
    if unknown or generated is None:
        why = next((reason for reason in requests.reason if reason), "the server sends no usage")
        raise MeasurementError(f"the tokens of {unknown} of {prefilled.sum()} requests are not known: {why}")
    first_tokens = float(window.holds(requests.first_token_s).sum())
    return TokenWindow(
        run.energy,
        prompt_tokens=float(requests.input_tokens[prefilled].sum()),
        decode_tokens=max(0.0, generated.output - first_tokens),
    )
