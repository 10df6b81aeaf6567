"""What the data cover: inside it a prediction stands, near it it comes with a warning, far from it it is refused.

The rule, for a query and the rows that a model was fitted on:

- a number outside the range seen for the query's GPU (or whatever `within` names) is a **warning**, and outside it by
  more than a factor of `REFUSED_FACTOR` a **refusal**: at 4 times the largest load of public measurements predictions
  were 12 to 55 % off, at 8 times 19 to 109 %, and 90 % intervals held 46 to 74 % of the truths;
- a name never seen, or never together with that GPU, is a **warning**: physical features stand in for it;
- two names never seen are a **refusal**: nothing measured is alike in either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qplan.core.errors import InputError, StoreError, nearest

REFUSED_FACTOR = 4.0
_ALL = ""  # stands for every value of `within`


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of a query, in sentences; one that is refused has no answer."""

    warnings: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    def require(self) -> None:
        """Raise :class:`InputError` when the query is refused."""
        if self.refusals:
            raise InputError("; ".join(self.refusals))


@dataclass(frozen=True, slots=True)
class Support:
    """Names and ranges that rows hold.

    Attributes
    ----------
    within
        The name whose rows bound what is seen of everything else, as ``gpu``.
    names
        By column of names and value of `within`: the values seen.
    ranges
        By column of numbers and value of `within`: least and greatest value seen.
    """

    within: str
    names: Mapping[str, Mapping[str, tuple[str, ...]]]
    ranges: Mapping[str, Mapping[str, tuple[float, float]]]

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[str] | Sequence[float]], within: str = "gpu") -> Support:
        """Return the support of rows.

        Parameters
        ----------
        columns
            By name, one value a row: all text, or all numbers.
        within
            One of the columns of text.

        Raises
        ------
        InputError
            There is no such column, or no row.
        """
        if within not in columns or not len(columns[within]):
            raise InputError(f"no rows with a column '{within}' to take the support of; columns: {', '.join(columns)}")
        groups = [str(value) for value in columns[within]]
        names: dict[str, dict[str, tuple[str, ...]]] = {}
        ranges: dict[str, dict[str, tuple[float, float]]] = {}
        for column, values in columns.items():
            by_group: dict[str, list[Any]] = {_ALL: list(values)}
            for group, value in zip(groups, values, strict=True):
                by_group.setdefault(group, []).append(value)
            if isinstance(values[0], str):
                names[column] = {group: tuple(sorted(set(seen))) for group, seen in by_group.items()}
            else:
                ranges[column] = {group: (float(min(seen)), float(max(seen))) for group, seen in by_group.items()}
        return cls(within, names, ranges)

    def check(self, query: Mapping[str, str | float]) -> Verdict:
        """Return the verdict on a query; columns that the rows lack are not judged."""
        where = str(query.get(self.within, _ALL))
        group = where if where in self.names[self.within] else _ALL
        strange = [self._strange(column, str(query[column])) for column in self.names if column in query]
        new = [sentence for sentence in strange if sentence]
        warnings = [*new, *self._apart(query, group)]
        refusals = [" and ".join(new) + ": too little is alike"] if len(new) > 1 else []
        for column in self.ranges:
            if column in query:
                factor, sentence = self._outside(column, float(query[column]), group)
                if factor > REFUSED_FACTOR:
                    refusals.append(f"{sentence}: refused beyond {REFUSED_FACTOR:g} times the range")
                elif factor > 1:
                    warnings.append(sentence)
        return Verdict(tuple(warnings), tuple(refusals))

    def to_data(self) -> dict[str, Any]:
        """Return the support as plain data."""
        return {
            "within": self.within,
            "names": {column: dict(groups) for column, groups in self.names.items()},
            "ranges": {column: dict(groups) for column, groups in self.ranges.items()},
        }

    @classmethod
    def from_data(cls, data: Any) -> Support:
        """Read what :meth:`to_data` returned; anything else is a :class:`StoreError`."""
        try:
            names = {
                str(column): {str(group): tuple(map(str, seen)) for group, seen in groups.items()}
                for column, groups in data["names"].items()
            }
            ranges = {
                str(column): {str(group): (float(low), float(high)) for group, (low, high) in groups.items()}
                for column, groups in data["ranges"].items()
            }
            found = cls(str(data["within"]), names, ranges)
            found.names[found.within][_ALL]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"support: not what was saved: {type(error).__name__} {error}") from None
        return found

    def _strange(self, column: str, value: str) -> str:
        """Return the sentence on a name that no row holds, or nothing."""
        seen = self.names[column][_ALL]
        if value in seen:
            return ""
        return f"{column}={value} was never measured; seen: {_listed(seen)}{nearest(value, seen)}"

    def _apart(self, query: Mapping[str, str | float], group: str) -> list[str]:
        """Return a sentence for each name that was seen, but never in the query's group."""
        sentences = []
        for column, groups in self.names.items():
            value = str(query.get(column))
            if group != _ALL and value in groups[_ALL] and value not in groups[group]:
                sentences.append(
                    f"{column}={value} was never measured on {group}; seen there: {_listed(groups[group])}"
                )
        return sentences

    def _outside(self, column: str, value: float, group: str) -> tuple[float, str]:
        """Return by what factor a number lies outside its range, 1 inside, and the sentence on it."""
        low, high = self.ranges[column][group]
        if low <= value <= high:
            return 1.0, ""
        # A range that touches 0 has no factor above it: leaving it warns, and never refuses.
        if value > high:
            factor = value / high if high > 0 else 1.0
        else:
            factor = low / value if value > 0 else math.inf if low > 0 else 1.0
        where = f" for {self.within}={group}" if group else ""
        span = f"{low:g}" if low == high else f"{low:g}-{high:g}"
        return max(factor, 1.0 + 1e-9), f"{column}={value:g} was never measured{where}; seen {span}"


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values[:8]) + (f" and {len(values) - 8} more" if len(values) > 8 else "")
