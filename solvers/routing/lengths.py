"""A demand's requests as a router can tell them: by class and length of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qplan.core.demand import Demand
from qplan.models.simulator.traffic import Traffic
from qplan.models.steptimes import Floats, Ints

QUANTILES = (0.5, 0.9)
"""Of the input length of a class, at which it is cut."""

READ_S, THINK_S = 0.05, 30.0
"""In a conversation: seconds to read a token, and mean seconds to think."""


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """B buckets of K classes, and J kinds of requests in them.

    Attributes
    ----------
    names : (K,)
    class_share : (K,)
        Share of all requests.
    request_class, weight : (B,)
        Class, and share of *all* requests.
    edges : (B, 2)
        Prompts from the first up to, without, the second.
    input_tokens, output_tokens, steps : (B,)
        Means; steps are the output tokens after the first.
    output_p50, output_p90 : (B,)
    kind_bucket, kind_input, kind_output, kind_weight : (J,)
        Lengths as the demand has them, with their share of all requests.
    """

    names: tuple[str, ...]
    class_share: Floats
    request_class: Ints
    weight: Floats
    edges: Floats
    input_tokens: Floats
    output_tokens: Floats
    steps: Floats
    output_p50: Floats
    output_p90: Floats
    kind_bucket: Ints
    kind_input: Floats
    kind_output: Floats
    kind_weight: Floats

    @classmethod
    def of(cls, demand: Demand, quantiles: Sequence[float] = QUANTILES) -> Lengths:
        """Cut the classes of a demand at quantiles of their prompts."""
        requests = np.array(
            [
                sum(rate * hours for rate, hours in zip(one.rate_qps, demand.hours, strict=True))
                for one in demand.classes
            ]
        )
        share = requests / requests.sum()
        rows: list[tuple[float, ...]] = []
        kinds: list[Floats] = []
        for k, one in enumerate(demand.classes):
            table = np.array([(b.input_tokens, b.output_tokens, b.weight) for b in one.workload.buckets])
            inner = np.unique([_quantile(table[:, 0], table[:, 2], q) for q in quantiles])
            inner = inner[(inner > table[:, 0].min()) & (inner <= table[:, 0].max())]
            edges = [0.0, *inner.tolist(), np.inf]
            cell = np.searchsorted(inner, table[:, 0], side="right")
            for n in np.unique(cell):
                i, o, w = table[cell == n].T
                mean = (w @ i / w.sum(), w @ o / w.sum(), w @ np.maximum(o - 1, 0) / w.sum())
                tails = (_quantile(o, w, 0.5), _quantile(o, w, 0.9))
                kinds.append(np.column_stack([np.full(len(i), len(rows)), i, o, share[k] * w]))
                rows.append((k, share[k] * w.sum(), edges[n], edges[n + 1], *mean, *tails))
        request_class, weight, low, high, given, made, steps, p50, p90 = np.array(rows).T
        kind_bucket, kind_input, kind_output, kind_weight = np.concatenate(kinds).T
        return cls(
            tuple(one.name for one in demand.classes),
            share,
            request_class.astype(np.int64),
            weight,
            np.column_stack([low, high]),
            given,
            made,
            steps,
            p50,
            p90,
            kind_bucket.astype(np.int64),
            kind_input,
            kind_output,
            kind_weight,
        )

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def mean_steps(self) -> float:
        """Mean decode steps of a request."""
        return float(self.weight @ self.steps)

    @property
    def mean_context(self) -> float:
        """Mean KV-cache tokens of a sequence that decodes: long ones are met more often."""
        stay = self.weight * np.maximum(self.steps, 1e-9)
        return float(stay @ (self.input_tokens + self.output_tokens / 2) / stay.sum())

    @property
    def mean_tokens(self) -> float:
        """Mean tokens that a sequence ends with, as the cache meets them."""
        stay = self.weight * np.maximum(self.steps, 1e-9)
        return float(stay @ (self.input_tokens + self.output_tokens) / stay.sum())

    def bucket_of(self, classes: Ints, input_tokens: Ints) -> Ints:
        """Return the bucket of each request, (N,)."""
        found = np.zeros(len(classes), np.int64)
        for k in range(len(self.names)):
            mine = np.flatnonzero(self.request_class == k)
            rows = classes == k
            found[rows] = mine[np.searchsorted(self.edges[mine[1:], 0], input_tokens[rows], side="right")]
        return found

    def draw(self, rate_qps: float, requests: int, seed: int) -> Traffic:
        """Draw Poisson arrivals of the demand's mix."""
        random = np.random.default_rng(seed)
        arrivals_s = np.cumsum(random.exponential(size=requests)) / rate_qps
        kinds, given, made = self._kinds(requests, random)
        # By the whole tokens that a router counts, which may round into the next bucket.
        return Traffic(arrivals_s, given, made, self.bucket_of(self.request_class[self.kind_bucket[kinds]], given))

    def converse(self, rate_qps: float, requests: int, seed: int, turns: float, longest_tokens: int) -> Traffic:
        """Draw conversations that begin as a Poisson stream, with so many turns in the mean.

        The number of turns is geometric. What a user adds in a turn, and the answer, are as long as a request of the
        demand is, all of one class; the prompt is all that was said before, and that. A user reads the answer while it
        comes, thinks for an exponential time, and begins anew rather than go beyond `longest_tokens`.
        """
        random = np.random.default_rng(seed)
        kinds, given, made = self._kinds(requests, random)
        classes = self.request_class[self.kind_bucket[kinds]]
        begins = random.random(requests) < 1.0 / turns
        begins[0] = True
        starts_s = np.cumsum(random.exponential(size=requests)) * turns / rate_qps
        thinks_s = random.exponential(THINK_S, requests)
        arrivals_s, prompts, session, n = np.zeros(requests), given.copy(), np.cumsum(begins) - 1, -1
        for row in range(requests):
            said = 0 if begins[row] else int(prompts[row - 1] + made[row - 1])
            if begins[row] or said + given[row] + made[row] > longest_tokens:
                n += 1
                arrivals_s[row] = starts_s[n]
            else:
                classes[row], prompts[row] = classes[row - 1], said + given[row]
                arrivals_s[row] = arrivals_s[row - 1] + READ_S * made[row - 1] + thinks_s[row]
            session[row] = n
        order = np.argsort(arrivals_s, kind="stable")
        columns = (prompts, made, self.bucket_of(classes, prompts), session)
        return Traffic(arrivals_s[order], *(column[order] for column in columns))

    def _kinds(self, requests: int, random: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """Draw kinds of requests; return them, and their lengths in whole tokens."""
        kinds = random.choice(len(self.kind_weight), requests, p=self.kind_weight / self.kind_weight.sum())
        given, made = (
            np.maximum(np.rint(values[kinds]), 1).astype(np.int64) for values in (self.kind_input, self.kind_output)
        )
        return kinds, given, made


def _quantile(values: Floats, weights: Floats, quantile: float) -> float:
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(below, quantile - 1e-12)), len(values) - 1)])
