from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.solvers.backends import installed_backends, open_backend
from qplan.solvers.backends.conformance import BackendConformance, covering


class TestHighs(BackendConformance):
    name = "highs"


class TestPulpCbc(BackendConformance):
    name = "pulp:cbc"


class TestPulpHighs(BackendConformance):
    name = "pulp:highs"


def test_the_shipped_backends_are_installed() -> None:
    assert {"highs", "pulp:cbc", "pulp:highs"} <= set(installed_backends())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("hihgs", "did you mean 'highs'"),
        ("pulp:cbb", "did you mean 'pulp:cbc'"),
        ("highs:fast", "write 'highs'"),
    ],
)
def test_an_unknown_solver_names_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        open_backend(name)


def test_a_solver_that_is_not_installed_names_those_that_are() -> None:
    with pytest.raises(InputError, match=r"'pulp:mosek' is not installed; .*pulp:cbc, pulp:highs"):
        open_backend("pulp:mosek")


def test_all_agree() -> None:
    objectives = [
        open_backend(name).solve(covering(), time_limit_s=60, mip_gap=0).objective
        for name in ("highs", "pulp:cbc", "pulp:highs")
    ]
    np.testing.assert_allclose(np.array(objectives, float), 1808.0, rtol=1e-9)


def test_another_package_brings_a_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "elsewhere-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[qplan.solver_backends]\nelsewhere = qplan.solvers.backends.highs:HighsBackend\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_backend("elsewhere").solve(covering(), time_limit_s=60, mip_gap=0).objective == 1808.0
    with pytest.raises(InputError, match="did you mean 'highs'"):
        open_backend("hihgs")
