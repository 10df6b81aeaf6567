import numpy as np
import pytest

from qplan.core.errors import InputError
from qplan.models.load import open_surrogate, surrogate_names
from qplan.models.load.boosting import MonotoneBoosting
from qplan.models.load.conformance import LoadSurrogateConformance
from qplan.models.load.contract import LoadSurrogate
from qplan.models.load.curves import PooledCurves
from qplan.models.load.monotone import AMORTISED, RISING, SATURATING
from qplan.models.load.process import MAX_ROWS, PooledProcess
from qplan.models.load.selection import SelectedSurrogate
from qplan.models.steptimes import Floats


class TestPooledProcess(LoadSurrogateConformance):
    def make(self, load: int, groups: tuple[int, ...], elasticity: tuple[float, float]) -> LoadSurrogate:
        return PooledProcess(load, groups, elasticity)


class TestPooledCurves(LoadSurrogateConformance):
    def make(self, load: int, groups: tuple[int, ...], elasticity: tuple[float, float]) -> LoadSurrogate:
        return PooledCurves(load, groups, elasticity)


class TestMonotoneBoosting(LoadSurrogateConformance):
    def make(self, load: int, groups: tuple[int, ...], elasticity: tuple[float, float]) -> LoadSurrogate:
        return MonotoneBoosting(load, groups, elasticity)


@pytest.mark.slow
class TestSelectedSurrogate(LoadSurrogateConformance):
    def make(self, load: int, groups: tuple[int, ...], elasticity: tuple[float, float]) -> LoadSurrogate:
        return SelectedSurrogate(load, groups, elasticity, candidates=("pooled-curves", "pooled-process"))


def knees(configurations: int = 12, noise: float = 0.02, seed: int = 3) -> tuple[Floats, Floats]:
    """Latencies with a knee that moves with a feature; the columns are load, configuration, feature."""
    draw = np.random.default_rng(seed)
    feature = draw.uniform(-1, 1, configurations)
    rows = [(load, n, feature[n]) for n in range(configurations) for load in 2.0 ** np.arange(1, 9)]
    X = np.array(rows)
    level = 0.15 * draw.standard_normal(configurations)[X[:, 1].astype(int)]
    y = np.exp(level + X[:, 2]) * (1 + X[:, 0] / (30 * np.exp(X[:, 2])))
    return X, y * np.exp(noise * draw.standard_normal(len(y)))


def log_log_line(X: Floats, y: Floats, at: Floats) -> Floats:
    """Prolong the last segment of a configuration in logarithms."""
    x, z = np.log(X[-2:, 0]), np.log(y[-2:])
    line: Floats = np.exp(z[1] + (z[1] - z[0]) / (x[1] - x[0]) * (np.log(at) - x[1]))
    return line


@pytest.mark.parametrize("kind", [PooledProcess, PooledCurves])
def test_three_points_and_its_likes_give_the_curve_beyond_them(kind: type[LoadSurrogate]) -> None:
    X, y = knees()
    held = (X[:, 1] == 5) & (X[:, 0] > 8)
    fitted = kind().fit(X[~held], y[~held])
    own = (X[:, 1] == 5) & ~held
    pooled = np.abs(np.log(fitted.predict(X[held]) / y[held])).mean()
    alone = np.abs(np.log(log_log_line(X[own], y[own], X[held, 0]) / y[held])).mean()
    assert pooled < 0.12
    assert pooled < 0.5 * alone


@pytest.mark.parametrize("kind", [PooledProcess, PooledCurves, MonotoneBoosting])
def test_configurations_never_seen_are_placed_by_their_features(kind: type[LoadSurrogate]) -> None:
    X, y = knees(configurations=24)
    held = X[:, 1] % 4 == 1
    predicted = kind().fit(X[~held], y[~held]).predict(X[held])
    other = np.exp(np.log(y[~held]).mean())
    assert np.abs(np.log(predicted / y[held])).mean() < 0.4 * np.abs(np.log(other / y[held])).mean()


@pytest.mark.parametrize("kind", [PooledProcess, PooledCurves])
def test_doubt_is_larger_where_nothing_was_measured(kind: type[PooledProcess | PooledCurves]) -> None:
    X, y = knees()
    fitted = kind().fit(X, y)
    inside = fitted.predict_std(np.array([[16.0, 5, X[X[:, 1] == 5, 2][0]]]))
    unseen = fitted.predict_std(np.array([[16.0, 77, 0.1]]))
    beyond = fitted.predict_std(np.array([[4096.0, 5, X[X[:, 1] == 5, 2][0]]]))
    assert 0.005 < inside[0] < 0.06
    assert unseen[0] > 2 * inside[0]
    assert beyond[0] > 2 * inside[0]


@pytest.mark.parametrize("kind", [PooledProcess, PooledCurves])
def test_doubt_covers_runs_that_were_held_out(kind: type[PooledProcess | PooledCurves]) -> None:
    X, y = knees(configurations=20, noise=0.05)
    held = np.random.default_rng(0).random(len(y)) < 0.3
    fitted = kind().fit(X[~held], y[~held])
    z = np.log(y[held] / fitted.predict(X[held])) / fitted.predict_std(X[held])
    assert 0.75 < (np.abs(z) < 1.645).mean() <= 1.0
    assert z.std() > 0.6  # nor so wide that it says nothing


def test_a_step_that_similar_configurations_share_is_expected_of_the_next() -> None:
    X, y = knees(configurations=14, noise=0.005)
    y = y * np.where(X[:, 0] == 64, 1.15, 1.0)
    held = (X[:, 1] == 5) & (X[:, 0] == 64)
    predicted = PooledProcess().fit(X[~held], y[~held]).predict(X[held])
    assert predicted[0] == pytest.approx(y[held][0], rel=0.05)


def test_learned_parameters_can_be_given_back() -> None:
    X, y = knees()
    learned = PooledProcess().fit(X, y)
    again = PooledProcess(parameters=learned.parameters_).fit(X, y)
    np.testing.assert_allclose(again.predict(X), learned.predict(X))
    with pytest.raises(InputError, match="parameters are not those"):
        PooledProcess(parameters=learned.parameters_[1:]).fit(X, y)


def test_the_process_says_what_takes_more_rows() -> None:
    X = np.column_stack([np.arange(1.0, MAX_ROWS + 2), np.zeros(MAX_ROWS + 1)])
    with pytest.raises(InputError, match="monotone-boosting"):
        PooledProcess().fit(X, X[:, 0])


@pytest.mark.slow
def test_selection_takes_what_predicts_held_out_rows_best() -> None:
    X, y = knees(configurations=6)
    by_load = SelectedSurrogate(candidates=("monotone-boosting", "pooled-curves")).fit(X, y)
    assert by_load.name_ == "pooled-curves"  # boosting cannot tell levels apart that no feature explains
    assert by_load.scores_["pooled-curves"] < 0.5 * by_load.scores_["monotone-boosting"]
    np.testing.assert_array_equal(by_load.predict(X), PooledCurves().fit(X, y).predict(X))


def test_selection_passes_over_candidates_that_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qplan.models.load.process.MAX_ROWS", 10)
    X, y = knees()
    names = ("pooled-process", "pooled-curves")
    chosen = SelectedSurrogate(candidates=names, question="configuration").fit(X, y)
    assert (chosen.name_, set(chosen.scores_)) == ("pooled-curves", {"pooled-curves"})
    with pytest.raises(InputError, match="no candidate takes these rows: pooled-process: "):
        SelectedSurrogate(candidates=names[:1]).fit(X, y)


def test_selection_refuses_questions_that_it_cannot_put() -> None:
    X, y = knees()
    with pytest.raises(InputError, match="question='both'; expected one of load, configuration"):
        SelectedSurrogate(question="both").fit(X, y)
    with pytest.raises(InputError, match="needs two"):
        SelectedSurrogate(question="configuration").fit(X[:8], y[:8])


def test_surrogates_are_opened_by_name() -> None:
    assert surrogate_names()[:4] == ["pooled-process", "pooled-curves", "monotone-boosting", "selected"]
    for name in surrogate_names():
        opened = open_surrogate(name, load=2, groups=(0,), elasticity=SATURATING)
        assert (opened.load, opened.groups, opened.elasticity) == (2, (0,), SATURATING)
    with pytest.raises(InputError, match=r"--surrogate: unknown surrogate 'pooled-proces'.*did you mean"):
        open_surrogate("pooled-proces", where="--surrogate")


def test_other_packages_bring_surrogates(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    point = EntryPoint("theirs", "qplan.models.load.curves:PooledCurves", "qplan.surrogates")
    monkeypatch.setattr("qplan.models.load._entry_points", lambda: [point])
    assert "theirs" in surrogate_names()
    assert open_surrogate("theirs", elasticity=AMORTISED).elasticity == AMORTISED


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr("qplan.models.load.import_module", absent)
    with pytest.raises(InputError, match=r"needs sklearn, which is not installed: pip install 'qplan\[models\]'"):
        open_surrogate("pooled-curves")


def test_elasticity_must_hold_0() -> None:
    X, y = knees()
    with pytest.raises(InputError, match="two bounds with 0 between them"):
        PooledCurves(elasticity=(0.1, 1.0)).fit(X, y)
    assert PooledCurves(elasticity=RISING).fit(X, y).elasticity == RISING
