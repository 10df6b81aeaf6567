"""What data sheets tell of a study's configurations: numbers by which a surrogate compares what was never tried alike.

By names alone nothing that is learnt of one GPU holds for another. Their peaks, the bytes of the weights and the memory
that these leave are known before anything is measured, and so are the two times that bound an iteration from below: to
read the weights once, and to compute a token (Williams, Waterman, Patterson: Roofline, CACM 2009).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.quantization import Quantization
from qplan.solvers.tuning.candidates import Value
from qplan.solvers.tuning.space import Configuration, known_model

Floats = NDArray[np.float64]

_TOLD = ("gpu", "tp", "max_sequences")  # parameters that the numbers of data sheets tell whole


def features_of(configurations: Sequence[Configuration]) -> Floats:
    """Return what is known of configurations before they are measured, shape (N, F); logarithms where ratios matter.

    A parameter that is a word (quantization, engine ...) has a column of 0 and 1 for each of its values, a GPU its data
    sheet's numbers. Of a model that the catalogue does not have, bits stand for bytes.
    """
    kept: list[Floats] = []
    for column in (*_data_sheets(configurations), *_settings([one.parameters for one in configurations])):
        if np.ptp(column) > 0 and not any(_is_the_same(column, other) for other in kept):
            kept.append(column)
    return np.column_stack(kept) if kept else np.zeros((len(configurations), 0))


def _is_the_same(column: Floats, other: Floats) -> bool:
    """Whether two columns say the same, as the time to read the weights and their bits do on one GPU."""
    return bool(abs(np.corrcoef(column, other)[0, 1]) > 1 - 1e-9)


def _data_sheets(configurations: Sequence[Configuration]) -> Iterator[Floats]:
    quantizations = [Quantization.parse(one.target.quantization) for one in configurations]
    gpus = [one.gpu for one in configurations]
    tp = np.array([one.target.tp for one in configurations], dtype=float)
    bandwidth = np.array([gpu.bandwidth_tb_s for gpu in gpus])
    peak = np.array([_peak(gpu, one) for gpu, one in zip(gpus, quantizations, strict=True)])
    bits = np.array([one.bits_per_weight for one in quantizations])
    sequences = np.array([one.target.max_sequences for one in configurations], dtype=float)
    sizes, operations, held = bits, np.ones(len(bits)), sequences
    deployments = [_deployment(one) for one in configurations]
    known = [one for one in deployments if one is not None]
    if len(known) == len(deployments):
        sizes = np.array([one.weight_bytes for one in known])
        operations = np.array([float(one.model.linear_parameters) for one in known])
        tokens = np.array([one.target.context_tokens for one in configurations], dtype=float)
        room = np.array([max(one.memory().kv_bytes, 0.0) / one.kv_bytes_per_token for one in known])
        held = np.clip(room / tokens, 1.0, sequences)
    yield np.log2(sizes / (bandwidth * tp))
    yield np.log2(operations / (peak * tp))
    yield np.log2(held)
    yield np.log2(sequences)
    if all(gpu.tdp_w for gpu in gpus):
        yield np.log2(np.array([float(gpu.tdp_w or 0) for gpu in gpus]) * tp)
    yield np.log2(tp)
    yield np.log2(bits)
    yield np.log2([one.kv_bits_per_value for one in quantizations])


def _settings(parameters: Sequence[Mapping[str, Value]]) -> Iterator[Floats]:
    """Yield what parameters say that data sheets do not."""
    for name in dict.fromkeys(name for one in parameters for name in one):
        values = [one.get(name) for one in parameters]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        if name in _TOLD:
            continue
        if len(numbers) == len(values) and not any(isinstance(value, bool) for value in values):
            yield np.log2(numbers) if min(numbers) > 0 else np.array(numbers)
        else:
            for word in dict.fromkeys(values):
                yield np.array([float(value == word) for value in values])


def _peak(gpu: Gpu, quantization: Quantization) -> float:
    """Return the peak of a quantization's operations in 10^12/s: of 16 bits where the part has no faster format."""
    if quantization.activations.bits > 8:
        return gpu.tflops_16
    faster = gpu.tflops_fp8 if quantization.activations.kind == "float" else gpu.tops_int8
    return faster or gpu.tflops_16


def _deployment(one: Configuration) -> Deployment | None:
    model = known_model(one.target.model)
    if model is None:
        return None
    try:
        return Deployment(model, Quantization.parse(one.target.quantization), one.gpu, one.target.tp)
    except InputError:  # heads that do not divide: an engine may split them all the same
        return None
