"""The requests that one replica of a planned fleet is sent: at random times, or as a trace has them.

A request goes to a replica with the probability that the plan's shares give it, whatever happened before. So requests
that come to the fleet as a Poisson process come to the replica as one (Kingman, *Poisson Processes*, 1993, section
5.1). A trace's come with its bursts and its runs of alike requests. At another rate than its own it stands for so many
times the users: s times the rate is s copies of it, each begun at a random moment and again when it ends; all are
thinned a little where s is not whole. So bursts keep their size and their length; the more copies, the more even it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.models.steptimes import Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """N requests in order: seconds from the begin of their period, class and lengths; all (N,)."""

    times_s: Floats
    classes: Ints
    input_tokens: Ints
    output_tokens: Ints

    @classmethod
    def merged(cls, parts: Sequence[Sent]) -> Sent:
        """Return the requests of several streams in order."""
        times, classes, given, made = (
            np.concatenate([getattr(one, name) for one in parts])
            for name in ("times_s", "classes", "input_tokens", "output_tokens")
        )
        order = np.argsort(times, kind="stable")
        return cls(times[order], classes[order], given[order], made[order])


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """N requests of a class as they came, in order; they repeat after `length_s`.

    Attributes
    ----------
    times_s : (N,)
        Seconds, from 0 to `length_s`.
    buckets, input_tokens, output_tokens : (N,)
        Bucket, as routing tells requests apart, and lengths.
    by_period
        Whether the periods of a horizon are equal parts of the trace in turn; else each is the whole of it.
    """

    times_s: Floats
    length_s: float
    buckets: Ints
    input_tokens: Ints
    output_tokens: Ints
    by_period: bool

    def __len__(self) -> int:
        return len(self.times_s)

    def during(self, period: int, periods: int) -> Recorded:
        """Return the requests of one period of several."""
        if not self.by_period:
            return self
        length = self.length_s / periods
        part = slice(*np.searchsorted(self.times_s, [period * length, (period + 1) * length]).tolist())
        return Recorded(
            self.times_s[part] - period * length,
            length,
            self.buckets[part],
            self.input_tokens[part],
            self.output_tokens[part],
            by_period=False,
        )

    def sent(self, of_class: int, rate_qps: float, part: Floats, seconds: float, random: np.random.Generator) -> Sent:
        """Return what a replica gets in so many `seconds` of requests that come to the fleet at `rate_qps`.

        Parameters
        ----------
        part : (B,)
            Share of each bucket that goes to the replica; above 1 where it also serves for others that are away.
        """
        most = float(part[self.buckets].max())
        copies = rate_qps * most * self.length_s / len(self)  # that reach the replica, were all like the likeliest
        every = int(np.ceil(copies / min(most, 1.0)))
        begins = self.length_s * random.random(every)
        passing = int(len(self) * (seconds / self.length_s + 1)) + 1  # of each copy, more than enough
        reaching = every * passing * (chance := copies / every)
        gaps = random.geometric(chance, int(reaching + 8 * np.sqrt(reaching) + 8))
        at = np.cumsum(gaps) - 1
        copy, at = np.divmod(at[at < every * passing], passing)
        rounds, index = np.divmod(np.searchsorted(self.times_s, begins)[copy] + at, len(self))
        times = rounds * self.length_s + self.times_s[index] - begins[copy]
        mine = (times < seconds) & (random.random(len(times)) * most < part[self.buckets[index]])
        times, index = times[mine], index[mine]
        order = np.argsort(times, kind="stable")
        times, index = times[order], index[order]
        classes = np.full(len(times), of_class)
        return Sent(times, classes, self.input_tokens[index], self.output_tokens[index])


def at_random(
    rates: Floats, classes: Ints, input_tokens: Ints, output_tokens: Ints, seconds: float, random: np.random.Generator
) -> Sent:
    """Return Poisson arrivals of J kinds of requests at `rates`; all arguments (J,)."""
    total = float(rates.sum())
    count = int(random.poisson(total * seconds))
    times = seconds * np.sort(random.random(count))
    kinds = random.choice(len(rates), count, p=rates / total) if count else np.zeros(0, np.int64)
    return Sent(times, classes[kinds], input_tokens[kinds], output_tokens[kinds])
