"""Where output goes: JSON or a console."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(document: Mapping[str, Any]) -> None:
    """Write `document` to standard output as JSON; what is not finite becomes null, which JSON can say."""
    json.dump(_finite(document), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def console() -> Console:
    """Return a console on standard output; piped output is wide enough that no table is cut."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(highlight=False, width=140 if piped else None, soft_wrap=piped)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
