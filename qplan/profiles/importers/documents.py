"""Reading JSON result files: documents, and numbers inside them, with errors that say where."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    Document = dict[str, Any]

QUANTILES = ("p50", "p90", "p95", "p99")


def read_documents(path: Path) -> list[Document]:
    """Read the JSON objects of a file: one, or several one after the other as some tools append them.

    Raises
    ------
    InputError
        The file is not JSON, or holds something other than objects.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; expected JSON") from None
    decoder, documents, at = json.JSONDecoder(), [], 0
    while at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
        except (RecursionError, ValueError):
            raise InputError(f"{path}: not JSON that can be read: too deep, or a number too long") from None
        if not isinstance(document, dict):
            raise InputError(f"{path}: expected a JSON object, found {type(document).__name__}")
        documents.append(document)
        at += len(text[at:]) - len(text[at:].lstrip())
    if not documents:
        raise InputError(f"{path}: the file is empty; expected JSON")
    return documents


def inside(document: Any, *keys: str) -> Any:
    """Return the value under nested keys; ``None`` where a key is absent or what holds it is no object."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def number(path: Path, document: Any, *keys: str) -> float | None:
    """Return the number under nested keys; ``None`` where it is absent or null.

    Raises
    ------
    InputError
        Something else than a finite, non-negative number stands there.
    """
    value = inside(document, *keys)
    if value is None:
        return None
    good = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        if good and math.isfinite(value) and value >= 0:
            return float(value)
    except OverflowError:  # an integer too large for a float
        pass
    raise InputError(f"{path}: '{'.'.join(keys)}' is {_short(value)}; expected a finite number, at least 0")


def count(path: Path, document: Any, *keys: str) -> int | None:
    """Return the whole number under nested keys; ``None`` where it is absent or null."""
    value = number(path, document, *keys)
    return None if value is None else round(value)


def text(document: Any, *keys: str) -> str | None:
    """Return the text under nested keys; ``None`` where it is absent, blank or no text."""
    value = inside(document, *keys)
    return value if isinstance(value, str) and value.strip() else None


def scaled(value: float | None, factor: float) -> float | None:
    """Multiply a latency; zero, which tools write for a metric without a sample, becomes null."""
    return value * factor if value else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Divide, where both are known and the denominator is not zero."""
    return numerator / denominator if numerator is not None and denominator else None


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
