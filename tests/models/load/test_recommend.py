import numpy as np
import pytest

from qplan.core.errors import InfeasibleError, InputError
from qplan.models.load.recommend import Recommendation, recommend, sustained_users
from qplan.models.steptimes import Floats

USERS = (1, 8, 64)
LIMIT = (0.05,)


def latency(*profiles: tuple[float, float, float]) -> Floats:
    """One scenario of one metric at 1, 8 and 64 users."""
    return np.array(profiles)[None, :, :, None]


SLOW, MIDDLE, FAST = (0.02, 0.06, 0.09), (0.02, 0.04, 0.09), (0.01, 0.02, 0.05)


def test_sustained_users_are_those_up_to_the_first_miss() -> None:
    curves = np.array([[0.06, 0.01, 0.01], [0.01, 0.06, 0.01], [0.01, 0.02, 0.05]])[..., None]
    assert sustained_users(curves, LIMIT, USERS).tolist() == [0, 1, 64]


def test_every_metric_counts() -> None:
    both = np.array([[0.01, 1.0], [0.01, 2.0], [0.06, 2.0]])
    assert sustained_users(both, (0.05, 1.5), USERS) == 1


def test_point_prediction_takes_the_cheapest() -> None:
    # 100 users: 100 pods at 1, 13 at 3, 2 at 20 an hour.
    choice = recommend(latency(SLOW, MIDDLE, FAST), LIMIT, USERS, [1.0, 3.0, 20.0], demand=100)
    assert choice == Recommendation(profile=1, pods=13, users_per_pod=8, cost_per_hour=39.0, chance=1.0)
    choice = recommend(latency(SLOW, MIDDLE, FAST), LIMIT, USERS, [1.0, 3.0, 19.0], demand=100)
    assert (choice.profile, choice.pods) == (2, 2)


def test_profile_that_cannot_run_the_model_is_never_chosen() -> None:
    choice = recommend(latency((np.inf,) * 3, FAST), LIMIT, USERS, [0.01, 20.0], demand=100)
    assert choice.profile == 1


def test_scenarios_buy_safety_where_it_is_cheap() -> None:
    # The pod holds 64 users in three scenarios of ten: 2 pods would do; 13 always do.
    scenarios = np.concatenate([latency(FAST)] * 3 + [latency(MIDDLE)] * 7)
    choice = recommend(scenarios, LIMIT, USERS, [1.0], demand=100)
    assert (choice.pods, choice.chance) == (2, 0.3)  # 13 pods waste so much where 2 suffice that they are worth less
    rival = np.concatenate([scenarios, np.repeat(latency(FAST), 10, axis=0)], axis=1)
    choice = recommend(rival, LIMIT, USERS, [1.0, 1.3], demand=100)
    assert (choice.profile, choice.pods, choice.chance) == (1, 2, 1.0)


def test_of_equal_values_the_cheaper() -> None:
    choice = recommend(latency(FAST, FAST), LIMIT, USERS, [2.0, 1.0], demand=64)
    assert (choice.profile, choice.pods) == (1, 1)


def test_nothing_keeps_the_limits() -> None:
    with pytest.raises(InfeasibleError, match=r"no profile keeps 0\.05 even at 1 users") as caught:
        recommend(latency((0.1, 0.2, 0.3)), LIMIT, USERS, [1.0], demand=10)
    assert caught.value.constraint == "slo"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prices_per_hour": [1.0, 2.0]}, "latency is of shape"),
        ({"prices_per_hour": [0.0]}, "a price is not positive"),
        ({"users": (8, 1, 64)}, "rising"),
        ({"demand": 0}, "demand=0"),
        ({"latency": latency((0.1, np.nan, 0.3))}, "a latency is missing"),
    ],
)
def test_bad_input(changes: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "latency": latency(FAST),
        "limits": LIMIT,
        "users": USERS,
        "prices_per_hour": [1.0],
        "demand": 10,
    }
    with pytest.raises(InputError, match=message):
        recommend(**{**good, **changes})  # type: ignore[arg-type]
