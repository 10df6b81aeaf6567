"""Facts that ship with qplan as data: GPUs with dated prices, models, quantization schemes, named workloads."""

from __future__ import annotations

import csv
import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def rows(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of the catalogue file `name` (CSV; lines that start with ``#`` are comments)."""
    text = files(__name__).joinpath(name).read_text(encoding="utf-8")
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@cache
def document(name: str) -> Any:
    """Return the content of the catalogue file `name` (JSON)."""
    return json.loads(files(__name__).joinpath(name).read_text(encoding="utf-8"))
