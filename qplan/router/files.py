"""Reading the policy that a router follows."""

from __future__ import annotations

import json
from pathlib import Path

from qplan.core.errors import InputError
from qplan.core.policy import Policy


def read_policy(path: Path) -> Policy:
    """Read a policy of ``qplan route solve``.

    Raises
    ------
    InputError
        The file cannot be read, or is no policy.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot read it as JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a policy of qplan route solve")
    return Policy.from_json(data, str(path))
