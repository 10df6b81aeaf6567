"""Workloads: what requests look like, as a weighted set of (input, output) lengths.

A joint distribution is kept as at most a few dozen buckets, because everything downstream (the serving model, the
solvers) integrates over them. Named mixes ship as data; files and datasets are read by :mod:`qplan.profiles.workloads`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qplan.core.catalogue import document
from qplan.core.errors import InputError, nearest
from qplan.core.units import parse_number


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """Requests of about one length: prompt tokens, generated tokens, and their share of all requests."""

    input_tokens: float
    output_tokens: float
    weight: float


@dataclass(frozen=True, slots=True)
class Workload:
    """A request mix.

    Attributes
    ----------
    name
        ``chat``, ``isl=512,osl=128``, a file name ...
    task
        ``chat``, ``code`` or ``summarization``: what quality is judged on; ``general`` where nothing was said.
    buckets
        Joint length distribution; weights sum to 1.
    source
        Where the lengths come from.
    """

    name: str
    task: str
    buckets: tuple[LengthBucket, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.buckets:
            raise InputError(f"workload {self.name}: no requests")
        for bucket in self.buckets:
            if not (bucket.input_tokens >= 1 and bucket.output_tokens >= 1 and bucket.weight > 0):
                raise InputError(
                    f"workload {self.name}: a bucket of {bucket.input_tokens:g} input and {bucket.output_tokens:g} "
                    f"output tokens with weight {bucket.weight:g}; expected at least 1 token each and a positive weight"
                )
        if abs(sum(bucket.weight for bucket in self.buckets) - 1) > 1e-6:
            raise InputError(f"workload {self.name}: the weights of its buckets do not sum to 1")

    @classmethod
    def of(cls, name: str, task: str, buckets: Iterable[tuple[float, float, float]], source: str) -> Workload:
        """Make a workload of ``(input_tokens, output_tokens, weight)`` triples; weights are normalised."""
        triples = list(buckets)
        total = sum(weight for _, _, weight in triples)
        return cls(
            name,
            task,
            tuple(LengthBucket(i, o, weight / total) for i, o, weight in triples) if total > 0 else (),
            source,
        )

    @classmethod
    def named(cls, name: str) -> Workload | None:
        """Return the named mix `name`, or ``None`` when there is none."""
        entry = document("workloads.json").get(name.strip().casefold())
        if entry is None:
            return None
        return cls.of(name.strip().casefold(), entry["task"], entry["buckets"], entry["source"])

    @staticmethod
    def names() -> tuple[str, ...]:
        """Return the names of the mixes that ship with qplan."""
        return tuple(document("workloads.json"))

    @classmethod
    def fixed(cls, text: str, where: str = "--workload") -> Workload:
        """Read ``isl=512,osl=128``: every request of the same lengths."""
        lengths = {}
        for part in text.split(","):
            key, equals, number = part.partition("=")
            key = key.strip().casefold()
            if key not in ("isl", "osl") or not equals or key in lengths:
                raise InputError(
                    f"{where}: cannot read '{text}'; expected isl=TOKENS,osl=TOKENS{nearest(key, ('isl', 'osl'))}"
                )
            lengths[key] = parse_number(number, where)
            if lengths[key] < 1 or lengths[key] != int(lengths[key]):
                raise InputError(f"{where}: {key} is {number}; expected a whole number of at least 1 token")
        if set(lengths) != {"isl", "osl"}:
            raise InputError(f"{where}: '{text}' needs both isl and osl, such as isl=512,osl=128")
        name = f"isl={lengths['isl']:g},osl={lengths['osl']:g}"
        return cls(name, "general", (LengthBucket(lengths["isl"], lengths["osl"], 1.0),), "given lengths")

    @property
    def mean_input_tokens(self) -> float:
        """Mean prompt length in tokens."""
        return sum(bucket.weight * bucket.input_tokens for bucket in self.buckets)

    @property
    def mean_output_tokens(self) -> float:
        """Mean generated length in tokens."""
        return sum(bucket.weight * bucket.output_tokens for bucket in self.buckets)

    @property
    def longest(self) -> float:
        """Longest sequence of the mix, prompt and output together, in tokens."""
        return max(bucket.input_tokens + bucket.output_tokens for bucket in self.buckets)
