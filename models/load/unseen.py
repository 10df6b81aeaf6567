"""Latency of an LLM that nobody has measured, on GPUs on which others were: physics with learned coefficients.

A pod serves a closed loop of users, each of whom sends the next request when the last is answered. The form is:

- *Memory* caps the running batch: ``cap = c (free bytes / KV bytes per token) ** alpha``. An engine that pads its batch
  (no flash attention, or encoder-decoder) has a c and an alpha of its own.
- *A decode step* takes launch overhead per layer plus the weights over the bandwidth, and per running sequence a
  fixed cost, one for its KV cache (read, and copied when a padded batch is put together anew), and one for the prefills
  that keep the batch full. In padded batches the median step sees these only once most steps contain a prefill.
- *TTFT* per input token is a prefill, which grows with the users it is batched with, plus a wait of those who do not
  fit into the batch for those who do.

About forty coefficients have a prior and are fitted to all measured LLMs at once, by least squares on logarithms with a
loss that forgives outliers. Each GPU type has three small factors (overhead, step, prefill). Latencies never fall
with users. What the coefficients cannot know of a new LLM is the *spread*: residuals that leaving each LLM out shows,
split into a part common to all profiles of the LLM and one of each profile.

Fitted on LLM-Pilot's measurements (arXiv 2410.02425: TGIS, 10 LLMs); the form was found by looking at those.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from qplan.core.errors import InputError
from qplan.models.steptimes import Floats

#: Columns of X. `gpu` is any code of the GPU type; a code that `fit` did not see has neutral factors.
FEATURES = (
    "users",
    "parameters",
    "encoder_decoder",
    "flash_attention",
    "decoder_layers",
    "kv_bytes_per_token",
    "gpus",
    "memory_bytes",  # of one GPU, like the two that follow
    "bandwidth_bytes_s",
    "peak_flops",
    "gpu",
)
#: Columns of y: median TTFT per input token, median and mean gap between tokens, mean running batch. NaN: not measured.
TARGETS = ("nttft_s", "itl_s", "mean_itl_s", "running_batch")

WEIGHT_BYTES = 2.0  # a parameter, served in 16 bits
USABLE_MEMORY = 0.93
FEW_USERS = 8  # below, latencies decide little: half the weight
SPREAD_USERS = 16  # from here on residuals count towards the spread
SHARPNESS = 3.0  # of the bend where the batch meets its cap
NOISE = 0.2  # of a logarithm, about what the form leaves unexplained
TRUST = np.array([0.7, 1.0, 0.7, 0.7])  # of the targets
FACTOR_SD = 0.2  # of the three factors of a GPU type

#: Prior mean and standard deviation of each coefficient; those in logarithms scale milliseconds or a batch.
PRIORS = {
    "overhead_flash": (-1.2, 1.0),  # ln of launch ms per layer
    "overhead_padded": (-1.2, 1.0),
    "overhead_encoder": (-0.5, 1.0),
    "overhead_parallel": (-1.0, 1.0),  # ln of its increase on several GPUs
    "bandwidth": (0.2, 0.3),  # ln of peak over achieved
    "sequence": (-1.2, 0.7),  # ln of step ms per sequence
    "sequence_gpus": (0.0, 0.3),  # exponent
    "cache_flash": (0.0, 1.0),  # ln of step ms per sequence and MB of KV per token
    "cache_padded": (0.0, 1.0),
    "hardware": (0.7, 0.3),  # exponent of bandwidth, and of peak FLOP/s
    "prefill_step": (-1.6, 0.7),  # ln of step ms per sequence and 1e10 parameters
    "visible_padded": (0.0, 1.0),  # logit of what the median step of a small padded batch sees
    "visible_encoder": (-1.0, 1.0),
    "visible_batch": (float(np.log(14)), 0.3),  # ln of the batch from which it sees all
    "mean_over_median": (float(np.log(2)), 0.3),
    "cap_flash": (float(np.log(15)), 1.0),  # ln of the batch at 15,000 tokens of free memory
    "cap_padded": (float(np.log(15)), 1.0),  # at 100,000
    "cap_flash_memory": (1.0, 0.3),  # exponent
    "cap_padded_memory": (1.25, 0.5),
    "active": (-0.2, 0.1),  # ln of the share of users in the batch when all fit
    "prefill_flash": (-0.5, 1.0),  # ln of ms per input token, one user, at REFERENCE_PREFILL_S
    "prefill_padded": (-0.5, 1.0),
    "prefill_users": (0.6, 0.3),  # exponent
    "prefill_flops": (0.3, 0.3),  # exponent
    "wait": (-1.4, 1.0),
}
FACTORS = 3
REFERENCE_PREFILL_S = 1e-4  # of a token at peak FLOP/s
REFERENCE_BANDWIDTH, REFERENCE_FLOPS = 1.555e12, 312e12  # an A100 of 40 GB


class UnseenLlm(BaseEstimator):  # type: ignore[misc]
    """Latency over users of LLMs that were not measured.

    Attributes
    ----------
    coefficients_ : (C + 3 K,)
        In the order of :data:`PRIORS`, then three factors, each for K GPU types.
    gpus_ : (K,)
        Codes of the GPU types.
    llm_spread_, profile_spread_ : (2,)
        Standard deviation of ln(nttft), ln(itl) between LLMs and, within an LLM, between profiles.
    n_features_in_
    """

    def fit(self, X: Floats, y: Floats, llms: Any) -> Self:
        """Fit to rows X (N, 11), as :data:`FEATURES`, y (N, 4), as :data:`TARGETS`, and the LLM of each row (N,).

        Raises
        ------
        InputError
            A shape or a value is not as described, or there are fewer than three LLMs.
        """
        X, y, llms = np.asarray(X, dtype=float), np.asarray(y, dtype=float), np.asarray(llms)
        _check(X)
        if y.shape != (len(X), len(TARGETS)) or llms.shape != (len(X),):
            raise InputError(f"y of shape {y.shape} and llms of {llms.shape}: expected ({len(X)}, 4) and ({len(X)},)")
        if np.isinf(y).any() or (y <= 0).any():
            raise InputError(
                "y has a value that is not positive; expected seconds and sequences, NaN where not measured"
            )
        names = np.unique(llms)
        if len(names) < 3:
            raise InputError(f"{len(names)} LLMs: expected 3 or more, to see how they differ")
        z = np.log(y)
        self.n_features_in_ = X.shape[1]
        self.gpus_ = np.unique(X[:, -1])
        self.coefficients_ = self._least_squares(X, z, None)
        residuals = np.empty((len(X), 2))
        for name in names:
            out = llms == name
            # The neighbouring optimum is a few steps away.
            without = self._least_squares(X[~out], z[~out], self.coefficients_)
            residuals[out] = (_log_targets(without, self.gpus_, X[out]) - z[out])[:, :2]
        self.llm_spread_, self.profile_spread_ = _spread(residuals, X, llms)
        return self

    def predict(self, X: Floats) -> Floats:
        """Return (N, 4), as :data:`TARGETS`, for rows X (N, 11).

        Raises
        ------
        InputError
            X is not as described.
        """
        check_is_fitted(self)
        X = np.asarray(X, dtype=float)
        _check(X)
        result: Floats = np.exp(_log_targets(self.coefficients_, self.gpus_, X))
        return result

    def scenarios(self, X: Floats, count: int, seed: int = 0) -> Floats:
        """Return `count` draws of nttft_s and itl_s, (count, N, 2), for rows X (N, 11) of one LLM.

        A draw moves all profiles of the LLM together and each by itself, the same at every number of users.

        Raises
        ------
        InputError
            X is not as described.
        """
        middle = self.predict(X)[:, :2]
        _, profile = np.unique(_profiles(X), axis=0, return_inverse=True)
        profile = np.ravel(profile)
        random = np.random.default_rng(seed)
        common = random.normal(size=(count, 1, 2)) * self.llm_spread_
        own = random.normal(size=(count, int(profile.max()) + 1, 2)) * self.profile_spread_
        result: Floats = middle * np.exp(common + own[:, profile])
        return result

    def _least_squares(self, X: Floats, z: Floats, start: Floats | None) -> Floats:
        from scipy.optimize import least_squares

        factors = FACTORS * len(self.gpus_)
        mean = np.concatenate([[mean for mean, _ in PRIORS.values()], np.zeros(factors)])
        sd = np.concatenate([[sd for _, sd in PRIORS.values()], np.full(factors, FACTOR_SD)])
        measured = np.isfinite(z)
        weight = np.where(X[:, :1] >= FEW_USERS, 1.0, 0.5) * TRUST / NOISE

        def residuals(coefficients: Floats) -> Floats:
            misfit = (_log_targets(coefficients, self.gpus_, X) - z) * weight
            return np.concatenate([misfit[measured], (coefficients - mean) / sd])

        steps = 30 if start is None else 6
        found = least_squares(residuals, mean if start is None else start, loss="soft_l1", max_nfev=steps)
        return np.asarray(found.x)


def _log_targets(coefficients: Floats, gpus: Floats, X: Floats) -> Floats:
    """Return ln of :data:`TARGETS`, (N, 4)."""
    c = dict(zip(PRIORS, coefficients[: len(PRIORS)].tolist(), strict=True))
    users, parameters, encoder, flash, layers, kv_bytes, n, memory, bandwidth, flops, gpu = X.T
    padded = flash == 0
    # A last factor of zero serves the GPU types that were not fitted.
    factors = np.pad(coefficients[len(PRIORS) :].reshape(FACTORS, -1), ((0, 0), (0, 1)))
    known = np.searchsorted(gpus, gpu).clip(max=len(gpus) - 1)
    overhead_factor, step_factor, prefill_factor = factors[:, np.where(gpus[known] == gpu, known, len(gpus))]

    weights = WEIGHT_BYTES * parameters
    # In tokens; what does not fit at all is left a sliver, for the law needs a positive number.
    room = np.maximum(n * memory * USABLE_MEMORY - weights, 5e8) / kv_bytes
    cap = np.where(
        padded,
        np.exp(c["cap_padded"]) * (room / 1e5) ** c["cap_padded_memory"],
        np.exp(c["cap_flash"]) * (room / 1.5e4) ** c["cap_flash_memory"],
    )
    wanted = users * np.exp(c["active"])
    batch = wanted * (1 + (wanted / cap) ** SHARPNESS) ** (-1 / SHARPNESS)

    kind = np.where(encoder == 1, c["overhead_encoder"], np.where(padded, c["overhead_padded"], c["overhead_flash"]))
    overhead = layers * np.exp(kind + overhead_factor) * (1 + np.exp(c["overhead_parallel"]) * (n > 1))
    # Of an encoder-decoder, half the weights decode.
    alone = overhead + 1e3 * weights / (1 + encoder) / (n * bandwidth) * np.exp(c["bandwidth"])
    cache = np.exp(np.where(padded, c["cache_padded"], c["cache_flash"]))
    each = np.exp(step_factor) * (
        np.exp(c["sequence"]) * n ** c["sequence_gpus"]
        + cache * kv_bytes / 1e6 / n * (REFERENCE_BANDWIDTH / bandwidth) ** c["hardware"]
        + np.exp(c["prefill_step"]) * parameters / 1e10 / n * (REFERENCE_FLOPS / flops) ** c["hardware"]
    )
    least = 1 / (1 + np.exp(-np.where(encoder == 1, c["visible_encoder"], c["visible_padded"])))
    crowd = (batch / np.exp(c["visible_batch"])) ** 4
    visible = np.where(padded, least + (1 - least) * crowd / (1 + crowd), 1.0)
    median_step = alone + each * batch * visible
    mean_step = alone + each * batch * np.exp(c["mean_over_median"])

    prefill = users ** max(0.0, c["prefill_users"]) * np.exp(
        np.where(padded, c["prefill_padded"], c["prefill_flash"])
        + c["prefill_flops"] * np.log(2 * parameters / (n * flops) / REFERENCE_PREFILL_S)
        + prefill_factor
    )
    wait = np.exp(c["wait"]) * np.maximum(users - batch, 0) / batch * mean_step
    ms = np.column_stack([prefill + wait, median_step, mean_step]) / 1e3
    result: Floats = np.log(np.column_stack([ms, batch]))
    return result


def _profiles(X: Floats) -> Floats:
    return np.asarray(X, dtype=float)[:, [FEATURES.index("gpus"), FEATURES.index("gpu")]]


def _spread(residuals: Floats, X: Floats, llms: Any) -> tuple[Floats, Floats]:
    """Return the standard deviation between LLMs and that between the profiles of one, each (2,)."""
    finite = np.isfinite(residuals).all(axis=1) & (X[:, 0] >= SPREAD_USERS)
    between, within = [], []
    for name in np.unique(llms[finite]):
        rows = finite & (llms == name)
        centre = residuals[rows].mean(axis=0)
        between.append(centre)
        _, profile = np.unique(_profiles(X[rows]), axis=0, return_inverse=True)
        own = residuals[rows] - centre
        within += [own[np.ravel(profile) == one].mean(axis=0) for one in range(int(profile.max()) + 1)]
    if not between:
        raise InputError(f"no row has {SPREAD_USERS} users or more; the spread needs some")
    return np.sqrt(np.mean(np.square(between), axis=0)), np.sqrt(np.mean(np.square(within), axis=0))


def _check(X: Floats) -> None:
    if X.ndim != 2 or X.shape[1] != len(FEATURES):
        raise InputError(f"X is of shape {X.shape}; expected {len(FEATURES)} columns: {', '.join(FEATURES)}")
    flags = [FEATURES.index("encoder_decoder"), FEATURES.index("flash_attention")]
    if not np.isin(X[:, flags], (0, 1)).all():
        raise InputError("encoder_decoder and flash_attention must be 0 or 1")
    positive = np.delete(X, [*flags, FEATURES.index("gpu")], axis=1)
    if not (np.isfinite(X).all() and (positive > 0).all()):
        raise InputError("X has a value that is missing or not positive")
