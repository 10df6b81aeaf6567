"""Gradient boosting that is monotone in load and blind to which configuration it is.

It sees physical features and load, never a code, so it answers for configurations that nobody measured, from any
number of rows. Trees are flat beyond their data; a power law in the features, fitted first, carries from one size of
model or GPU to another, and the trees learn what it leaves.
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

from qplan.models.load.contract import LoadSurrogate
from qplan.models.load.monotone import RISING
from qplan.models.steptimes import Floats

TREES, RATE, LEAVES, LEAST_ROWS = 200, 0.06, 12, 5
RIDGE = 1.0  # rows that each standardised feature's exponent is held to 0 with


class MonotoneBoosting(LoadSurrogate):
    """Histogram gradient boosting of ln(y), constrained to the sign of the elasticity; see the module.

    Parameters
    ----------
    load, groups, elasticity
        As in :class:`~qplan.models.load.contract.LoadSurrogate`; codes are not looked at.
    random_state
        Seed of the boosting.
    """

    def __init__(
        self,
        load: int = 0,
        groups: tuple[int, ...] = (1,),
        elasticity: tuple[float, float] = RISING,
        random_state: int = 0,
    ) -> None:
        super().__init__(load, groups, elasticity)
        self.random_state = random_state

    def _fit(self, X: Floats, z: Floats) -> None:
        features = X[:, self.features_]
        self.centre_, self.scale_ = features.mean(axis=0), features.std(axis=0)
        trend = self._power_law_inputs(X)
        # Without load in it, the power law leaves the sign of the elasticity to the trees, which keep it.
        self.power_law_ = Ridge(alpha=RIDGE).fit(trend, z)
        lowest, greatest = self.elasticity
        sign = 1 if lowest >= 0 else -1 if greatest <= 0 else 0
        self.trees_ = HistGradientBoostingRegressor(
            max_iter=TREES,
            learning_rate=RATE,
            max_leaf_nodes=LEAVES,
            min_samples_leaf=LEAST_ROWS,
            early_stopping=False,
            monotonic_cst=[sign, *[0] * len(self.features_)],
            random_state=self.random_state,
        ).fit(self._tree_inputs(X), z - self.power_law_.predict(trend))

    def _log_curves(self, X: Floats) -> tuple[Floats, Floats]:
        level = self.power_law_.predict(self._power_law_inputs(X))
        shape = self.trees_.predict(self._tree_inputs(self._over_grid(X))).reshape(len(X), -1)
        return level[:, None] + shape, np.ones_like(shape)

    def _power_law_inputs(self, X: Floats) -> Floats:
        return np.column_stack([np.ones(len(X)), (X[:, self.features_] - self.centre_) / self.scale_])

    def _tree_inputs(self, X: Floats) -> Floats:
        return X[:, [self.load, *self.features_]]
