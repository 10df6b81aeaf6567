"""Reading a tuning file: keys that may be left out, and lists without repeats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from qplan.core.errors import InputError
from qplan.profiles.yamlfile import Entry

T = TypeVar("T")


def distinct(entry: Entry, read: Callable[[Entry], T]) -> tuple[T, ...]:
    """Read a list, or the one value that stands for it; none may come twice."""
    values: list[T] = []
    for item in entry.listed():
        value = read(item)
        if value in values:
            raise InputError(f"{item.where}: given twice")
        values.append(value)
    return tuple(values)


def optional(fields: Mapping[str, Entry], key: str, read: Callable[[Entry], T], default: T) -> T:
    """Read a key that may be left out."""
    return read(fields[key]) if key in fields else default
