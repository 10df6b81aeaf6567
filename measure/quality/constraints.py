"""Checks of whether an answer follows an instruction to the letter.

Each check is one entry of a JSON object, such as ``{"words": 3}``; what they are held against is a program, not a
judge, so that the verdict is the same on every machine. In the manner of FollowBench (arXiv 2310.20410) an item counts
only when *all* of its constraints are met: its "hard satisfaction rate".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qplan.core.errors import InputError, nearest


def _words(answer: str) -> int:
    return len(answer.split())


def _lines(answer: str) -> int:
    return sum(bool(line.strip()) for line in answer.splitlines())


def _sentences(answer: str) -> int:
    return len(re.findall(r"[.!?]+(?=\s|\"|'|$)", answer.strip())) or 1


def _json_equals(answer: str, expected: Any) -> bool:
    fenced = re.search(r"```(?:json)?\s*(.*?)```", answer, re.DOTALL)
    try:
        return bool(json.loads(fenced.group(1) if fenced else answer) == expected)
    except ValueError:
        return False


def _has(answer: str, part: str) -> bool:
    return part.casefold() in answer.casefold()


CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "words": lambda answer, count: _words(answer) == count,
    "min_words": lambda answer, count: _words(answer) >= count,
    "max_words": lambda answer, count: _words(answer) <= count,
    "lines": lambda answer, count: _lines(answer) == count,
    "sentences": lambda answer, count: _sentences(answer) == count,
    "contains": _has,
    "absent": lambda answer, part: not _has(answer, part),
    "starts": lambda answer, part: answer.lstrip(" \n\"'*#").casefold().startswith(part.casefold()),
    "matches": lambda answer, pattern: re.search(pattern, answer, re.IGNORECASE) is not None,
    "case": lambda answer, case: answer == (answer.upper() if case == "upper" else answer.lower()),
    "json": _json_equals,
}
"""Checks by name: answer and what the item demands, to whether it is met. Letters compare without case."""


def follows(answer: str, checks: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether an answer meets all `checks`; an empty answer meets none."""
    stripped = answer.strip()
    return bool(stripped) and all(CHECKS[name](stripped, demand) for check in checks for name, demand in check.items())


def require_known(checks: Sequence[Mapping[str, Any]], where: str) -> None:
    """Refuse a check that does not exist; `where` names the item in the error.

    Raises
    ------
    InputError
        There is no such check.
    """
    for name in (name for check in checks for name in check):
        if name not in CHECKS:
            raise InputError(f"{where}: unknown check '{name}'; expected one of {', '.join(CHECKS)}"
                             f"{nearest(name, CHECKS)}")  # fmt: skip
