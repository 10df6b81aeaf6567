from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models import validation
from qplan.models.steptimes import StepTimes


@pytest.mark.parametrize(("pip", "installer"), [(True, ["-m", "pip", "install"]), (False, ["uv", "pip", "install"])])
def test_the_sample_is_unpacked_with_what_there_is_and_read(
    pip: bool, installer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: list[str], *, check: bool) -> None:
        commands.append(command)
        member = Path(command[command.index("--target") + 1]) / validation.MEMBER
        member.parent.mkdir(parents=True)
        member.write_text("backend,mode\n", encoding="utf-8")

    monkeypatch.setattr(validation, "find_spec", lambda name: object() if pip else None)
    monkeypatch.setattr(subprocess, "run", run)
    assert validation.fetch() == "backend,mode\n"
    assert " ".join(installer) in " ".join(commands[0])
    assert commands[0][-1] == validation.PACKAGE


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, check: bool) -> None:
        raise subprocess.CalledProcessError(1, command[:3])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match=r"cannot download aiconfigurator-core.*pass --rows"):
        validation.fetch()


def test_requests_beyond_the_room_of_the_cache_wait_for_others_to_end(steps: StepTimes) -> None:
    def latencies(concurrency: int, room: float) -> tuple[float, float]:
        run = validation.Run("trtllm", "llama-2-13b", "A100", "BF16", 1, 100, 50, concurrency, 0.0, 0.0)
        return validation._latencies(steps.take(np.array([0])), room * 150.0, run)

    first, tpot = latencies(8, 8)
    assert latencies(8, 100) == (first, tpot)
    waited, crowded = latencies(24, 8.9)
    assert crowded == tpot
    assert waited == pytest.approx(first + 2 * (first + 49 * tpot))  # two batches of eight are ahead
