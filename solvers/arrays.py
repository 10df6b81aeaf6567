"""Checked arrays: what a problem is stated in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qplan.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def checked(
    field: str,
    values: ArrayLike,
    axes: Sequence[Sequence[str]],
    *,
    at_least: float = -np.inf,
    above: float = -np.inf,
    below: float = np.inf,
    infinite: bool = False,
) -> NDArray[np.float64]:
    """Return `values` as an array that cannot be written, checked against its axes' names and its range.

    Parameters
    ----------
    field
        What the array is called in messages.
    axes
        The names along each axis; their numbers are the expected shape.
    at_least, above, below
        The range of every entry.
    infinite
        Whether an entry may be infinite.

    Raises
    ------
    InputError
        Names the array and its first bad entry.
    """
    return _checked(field, values, axes, at_least, above, below, "a number" if infinite else "a finite number")


def checked_whole(
    field: str, values: ArrayLike, axes: Sequence[Sequence[str]], *, at_least: float, below: float = np.inf
) -> NDArray[np.int64]:
    """Return `values` as an array of integers that cannot be written; see :func:`checked`."""
    array = _checked(field, values, axes, at_least, -np.inf, below, "a whole number").astype(np.int64)
    array.setflags(write=False)
    return array


def _checked(
    field: str,
    values: ArrayLike,
    axes: Sequence[Sequence[str]],
    at_least: float,
    above: float,
    below: float,
    kind: str,
) -> NDArray[np.float64]:
    try:
        array = np.array(values, float)
    except (TypeError, ValueError) as error:
        raise InputError(f"{field}: expected numbers ({error})") from None
    shape = tuple(len(names) for names in axes)
    if array.shape != shape:
        raise InputError(f"{field}: expected shape {shape}, found {array.shape}")
    good = (array >= at_least) & (array > above) & (array < below)
    if kind == "a number":
        good |= array == np.inf
    if kind == "a whole number":
        good &= array == np.round(array)
    if not good.all():
        where = tuple(int(i[0]) for i in np.nonzero(~good))
        names = ", ".join(f"'{axis[i]}'" for axis, i in zip(axes, where, strict=True))
        wanted = f"above {above:g}" if above > -np.inf else f"at least {at_least:g}"
        wanted += f" and below {below:g}" if below < np.inf else ""
        raise InputError(f"{field} of {names}: expected {kind} {wanted}, found {array[where]:g}")
    array.setflags(write=False)
    return array
