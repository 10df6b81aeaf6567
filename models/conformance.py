"""What every serving model owes, as tests that anyone's model can run.

Subclass :class:`ServingModelConformance`, say how your model is made, and let pytest collect it::

    class TestMine(ServingModelConformance):
        def make(self, deployments, steps):
            return MyModel(deployments, steps)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.core.slo import METRICS, Slo
from qplan.core.workload import Workload
from qplan.models.serving import ServingModel
from qplan.models.steptimes import Floats, StepTimes

WORKLOAD = Workload.of("mixed", "chat", [(100, 50, 0.3), (400, 200, 0.5), (1500, 300, 0.2)], "made up")
PERCENTILES = (50.0, 90.0, 99.0)
SHARES = np.array([0.001, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.999])


class ServingModelConformance:
    """Tests of a serving model on two deployments with affine step times."""

    def make(self, deployments: Sequence[Deployment], steps: StepTimes) -> ServingModel:
        """Return the model under test."""
        raise NotImplementedError

    def _model(self) -> ServingModel:
        model, gpu = Model.named("llama-2-13b"), Gpu.named("h100")
        deployments = [Deployment(model, Quantization.parse(name), gpu) for name in ("BF16", "W8A8-FP")]
        tokens, batches, contexts = np.array([16.0, 16384.0]), np.array([1.0, 512.0]), np.array([16.0, 8192.0])
        speed = np.array([1.0, 1.7])
        prefill = (4e-3 + 5e-5 * tokens) / speed[:, None]
        decode = (10e-3 + 3e-5 * batches[:, None] + 2e-7 * batches[:, None] * contexts) / speed[:, None, None]
        return self.make(deployments, StepTimes(tokens, prefill, batches, contexts, decode))

    def _stable_qps(self, model: ServingModel) -> Floats:
        return model.saturation_qps(WORKLOAD, ())

    def test_percentiles_never_fall_with_load(self) -> None:
        """No percentile from the median up is lower at a higher rate."""
        model = self._model()
        stable = self._stable_qps(model)
        for metric in METRICS:
            for percentile in PERCENTILES:
                curve = np.array(
                    [model.at(WORKLOAD, stable * share).percentile(metric, percentile) for share in SHARES]
                )
                assert (np.diff(curve, axis=0) >= -1e-9 * curve[1:]).all(), (metric, percentile)

    def test_percentiles_are_ordered(self) -> None:
        """P50 <= p90 <= p99 for every metric at every load."""
        model = self._model()
        for share in SHARES:
            replicas = model.at(WORKLOAD, self._stable_qps(model) * share)
            for metric in METRICS:
                curve = np.array([replicas.percentile(metric, percentile) for percentile in PERCENTILES])
                assert (np.diff(curve, axis=0) >= 0).all(), (metric, share)

    def test_attainment_is_the_inverse_of_the_percentile(self) -> None:
        """The share of requests within the p-th percentile is p."""
        model = self._model()
        replicas = model.at(WORKLOAD, self._stable_qps(model) * 0.7)
        for metric in ("ttft", "tpot", "e2e"):
            for percentile in PERCENTILES:
                for row, threshold in enumerate(replicas.percentile(metric, percentile)):
                    share = replicas.attainment(metric, float(threshold))[row]
                    assert abs(share - percentile / 100) < 1e-6, (metric, percentile)

    def test_a_replica_at_its_saturation_rate_just_meets_the_slos(self) -> None:
        """At the rate returned the SLOs hold; 1 % above it one of them breaks."""
        model = self._model()
        slos = (Slo("ttft", 0.3, 90), Slo("tpot", 0.03, 99), Slo("e2e", 12.0, 50))
        rate = model.saturation_qps(WORKLOAD, slos)
        assert (rate > 0).all()
        for factor, held in ((1.0, True), (1.01, False)):
            replicas = model.at(WORKLOAD, rate * factor)
            met = [
                replicas.attainment(slo.metric, slo.threshold_s) >= (slo.percentile or 0) / 100 - 1e-9 for slo in slos
            ]
            assert (np.all(met, axis=0) == held).all()

    def test_a_looser_slo_never_lowers_the_saturation_rate(self) -> None:
        """Saturation is monotone in the threshold and in the percentile."""
        model = self._model()
        for metric, low in (("ttft", 0.05), ("tpot", 0.008), ("itl", 0.02), ("e2e", 2.0)):
            for percentile in PERCENTILES:
                rates = np.array(
                    [model.saturation_qps(WORKLOAD, [Slo(metric, low * 2**n, percentile)]) for n in range(6)]
                )
                assert (np.diff(rates, axis=0) >= -1e-9).all(), (metric, percentile)

    def test_an_slo_below_the_fastest_prefill_cannot_be_met(self) -> None:
        """The saturation rate is then 0."""
        assert (self._model().saturation_qps(WORKLOAD, [Slo("ttft", 1e-3, 50)]) == 0).all()

    def test_beyond_saturation_nothing_is_finite(self) -> None:
        """Latencies are infinite, attainment and throughput 0."""
        model = self._model()
        replicas = model.at(WORKLOAD, self._stable_qps(model) * 1.1)
        for metric in METRICS:
            assert np.isinf(replicas.percentile(metric, 50)).all()
            assert np.isinf(replicas.mean(metric)).all()
            assert (replicas.attainment(metric, 1e6) == 0).all()
        assert (replicas.output_tokens_per_s == 0).all()

    def test_what_goes_in_comes_out(self) -> None:
        """Below saturation the throughput is the offered tokens."""
        model = self._model()
        rate = self._stable_qps(model) * 0.5
        np.testing.assert_allclose(model.at(WORKLOAD, rate).output_tokens_per_s, rate * WORKLOAD.mean_output_tokens)
