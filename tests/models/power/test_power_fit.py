"""Fitting on samples drawn from known curves, and reading the two sources from small files of their shape."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qplan.core import InputError
from qplan.models.power import fit
from qplan.models.power.curves import Curve
from qplan.models.power.measured import Kernels, Points, points_of, read_kernels, read_runs
from qplan.models.power.watts import PowerModel

TRUE = Curve(0.2, 1.2, 2.5)
HEADER = ["family", "GPU", "Model", "task", "TP", "PP", "Energy/req (J)", "Avg TPOT (s)", "Token tput (tok/s)"]
HEADER += ["Avg Output Tokens", "Avg BS (reqs)"]
H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB"
MODELS = ("meta-llama/Meta-Llama-3.1-8B-Instruct", "codellama/CodeLlama-7b-hf", "mistralai/Mistral-7B-Instruct-v0.3")


def sample(curve: Curve, noise: float = 0.0, most: float = 0.9) -> Points:
    rng = np.random.default_rng(5)
    memory, compute = rng.uniform(0.02, most, 60), rng.uniform(0.01, most / 2, 60)
    power = curve.at(memory, compute) * np.exp(rng.normal(0, noise, 60))
    return Points(memory, compute, power, tuple(f"m{n % 6}" for n in range(60)))


def write_runs(path: Path) -> Path:
    """Write runs of made-up figures: power rises with the batch."""
    rows = [
        ("llm_text_generation", gpu, model, "chat", 1, 1, watts / (batch / tpot) * 100, tpot, batch / tpot, 100, batch)
        for gpu, scale in ((H100, 1.0), (A100, 0.6))
        for model in MODELS
        for batch, tpot, watts in ((8, 0.02, 300 * scale), (32, 0.03, 330 * scale), (128, 0.05, 380 * scale))
    ]
    rows.append(("mllm_text_generation", H100, "somebody/else", "chat", 1, 1, 1, 1, 1, 1, 1))
    rows.append(("llm_text_generation", H100, MODELS[0], "chat", 8, 2, 1, 1, 1, 1, 1))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


def kernels() -> bytes:
    """Return a table of made-up GEMMs that follow the true curve on an H200, FP8 twice as fast at the power limit."""
    rows = []
    for kind, peak, op_energy in (("bfloat16", 989.4e12, 1.0), ("fp8_block", 1978.8e12, 0.5)):
        for m in (8, 64, 256, 1024, 16384):
            for slower in (1.3, 2.0, 4.0):
                for n in range(24):
                    size = 8192 + 8 * n
                    flops, moved = 2 * m * size * 8192, 2 * (size * 8192 + m * 8192 + m * size)
                    time_s = slower * max(flops / peak, moved / 4.8e12)
                    share = np.array([op_energy * flops / time_s / 989.4e12])
                    watts = 700 * TRUE.at(np.array([moved / time_s / 4.8e12]), share)[0] if slower > 1.3 else 690.0
                    rows.append(
                        {"gemm_dtype": kind, "m": m, "n": size, "k": 8192, "latency": 1e3 * time_s, "power": watts}
                    )
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


class TestFit:
    def test_a_curve_is_found_again(self) -> None:
        found = fit.fit_curve([sample(TRUE)], least_idle=0.1)
        assert (found.idle, found.memory, found.compute) == pytest.approx((0.2, 1.2, 2.5), rel=1e-3)

    def test_outliers_do_not_pull_it(self) -> None:
        points = sample(TRUE)
        points.power[::15] *= 3
        found = fit.fit_curve([points], least_idle=0.1)
        assert found.at(np.array([0.4]), np.array([0.2]))[0] == pytest.approx(
            TRUE.at(np.array([0.4]), np.array([0.2]))[0], rel=0.05
        )

    def test_idle_power_is_at_least_that_of_an_idle_card(self) -> None:
        assert fit.fit_curve([sample(Curve(0.02, 2.0, 2.0))], least_idle=0.15).idle >= 0.15

    def test_a_group_is_predicted_without_itself(self) -> None:
        points = sample(TRUE)
        odd = np.array(points.groups) == "m3"
        points.power[odd] *= 0.5
        ratio = fit.leave_group_out(points, (), least_idle=0.1)
        assert ratio[odd] == pytest.approx(0.5, rel=0.05)
        assert np.median(ratio[~odd]) > 0.95

    def test_the_model_states_the_error_of_its_tests(self) -> None:
        low, noisy = sample(TRUE, 0.05, most=0.4), sample(TRUE, 0.05)
        fitted = fit.fit(low, low, Kernels(noisy, noisy, 0.63))
        ampere, hopper = fitted.model.architectures
        assert (ampere.name, hopper.name) == ("Ampere", "Hopper")
        assert 0.85 < ampere.error.lower < 1 < ampere.error.upper < 1.15
        assert ampere.max_memory_share < 0.41 < hopper.max_memory_share
        assert set(fit.card(fitted)["mean_absolute_error"]) == set(fitted.tests)
        assert all(name in fit.table(fitted) for name in fitted.tests)


class TestSources:
    def test_serving_runs_become_utilisation_and_power(self, tmp_path: Path) -> None:
        runs = read_runs(write_runs(tmp_path / "runs.csv"))
        assert len(runs) == 18  # neither other modalities nor pipelines
        first = runs[0]
        assert first.power_w == pytest.approx(300)
        points = points_of(runs[:3])
        assert points.power == pytest.approx(np.array([300, 330, 380]) / 700)
        # 16 GB of weights and little else in 20 ms, of the 67 GB that 3.35 TB/s carry
        assert points.memory_share[0] == pytest.approx(0.23, abs=0.02)

    def test_a_model_without_a_known_shape_is_named(self, tmp_path: Path) -> None:
        path = write_runs(tmp_path / "runs.csv")
        path.write_text(path.read_text().replace(MODELS[1], "nobody/nothing-7b"))
        with pytest.raises(InputError, match="nobody/nothing-7b"):
            read_runs(path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [("", "no run of a language model"), ("family,PP\nllm_text_generation,1\n", "not the leaderboard's table")],
    )
    def test_another_file_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "runs.csv"
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_runs(path)

    def test_kernels_become_cells_and_the_energy_of_8_bit_operations(self) -> None:
        found = read_kernels(io.BytesIO(kernels()), "a test")
        assert found.op_energy_8 == pytest.approx(0.5)  # as much power, twice the operations
        free = found.long.power < 0.95  # of the power limit
        expected = TRUE.at(found.long.memory_share, found.long.compute_share)
        assert free.sum() > 4
        assert found.long.power[free] == pytest.approx(expected[free], rel=0.02)

    def test_short_kernels_are_kept_apart(self) -> None:
        rows = pq.read_table(io.BytesIO(kernels())).to_pylist()
        short = [row | {"latency": 0.01, "power": 130.0, "n": 64, "k": 64} for row in rows[:40]]
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([*rows, *short]), file)
        file.seek(0)
        found = read_kernels(file, "a test")
        assert found.every.power.min() == pytest.approx(130 / 700)
        assert found.long.power.min() > 0.3

    def test_a_table_of_something_else_is_refused(self) -> None:
        with pytest.raises(InputError, match="a test: not a table of measured GEMMs"):
            read_kernels(io.BytesIO(b"no parquet"), "a test")


def test_the_command_writes_coefficients_that_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "made-up.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fit.MEMBER, kernels())
    monkeypatch.setattr(fit, "COEFFICIENTS", tmp_path / "coefficients.json")
    fit.main(["--runs", str(write_runs(tmp_path / "runs.csv")), "--wheel", str(wheel), "--write"])
    assert "leave-model-out" in capsys.readouterr().out
    data = json.loads((tmp_path / "coefficients.json").read_text(encoding="utf-8"))
    assert data.pop("card")["licence"] == "Apache-2.0"
    assert PowerModel.from_data(data).op_energy_8 == pytest.approx(0.5)


def test_a_wheel_of_something_else_is_refused(tmp_path: Path) -> None:
    runs, wheel = write_runs(tmp_path / "runs.csv"), tmp_path / "other.whl"
    wheel.write_bytes(b"not a wheel")
    with pytest.raises(InputError, match="--wheel"):
        fit.main(["--runs", str(runs), "--wheel", str(wheel)])
