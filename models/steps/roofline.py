"""What one engine iteration must move and compute, and how long that takes at the GPU's peaks.

An iteration prefills prompt tokens and gives one token to each decoding sequence. On each GPU of a tensor-parallel
group it reads its share of the weights once, reads the KV cache of the decoding sequences and writes that of the new
tokens, multiplies every token by every weight, attends, and twice a layer sums the hidden states over the group
(Narayanan et al., *Efficient Large-Scale Language Model Training on GPU Clusters*, 2021, section 3.2; Yuan et al.,
*LLM Inference Unveiled: Survey and Roofline Model Insights*, 2024, section 2). A ring all-reduce of ``n`` bytes over
``t`` GPUs sends ``2 n (t - 1) / t`` from each. Nothing here is fitted: real times are longer, by the efficiencies
that :mod:`qplan.models.steps.fitting` learns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.quantization import Quantization
from qplan.models.steptimes import Floats

KERNELS_PER_LAYER = 10  # norms, QKV, rotation, attention, projection, gate and up, activation, down, residual, cache
LAUNCH_S = 2e-6  # of one kernel replayed from a CUDA graph
_ALLREDUCES_PER_LAYER = 2  # after attention and after the MLP
_BYTES_16 = 2


@dataclass(frozen=True, slots=True)
class Terms:
    """Work of N iterations on each GPU of a replica; every attribute is (N,).

    Attributes
    ----------
    weight_bytes, kv_bytes
        Read and written in device memory.
    gemm_flops, head_flops, attention_flops
        Operations of the linear layers in the quantization's format, and those of the output head and of attention,
        which are 16-bit.
    allreduce_bytes
        Sent to the other GPUs; 0 without tensor parallelism.
    kernels, allreduces
        Launched, and waited for.
    weights_s, kv_s, gemm_s, head_s, attention_s, allreduce_s, launch_s
        Time of each at the GPU's peak.
    """

    weight_bytes: Floats
    kv_bytes: Floats
    gemm_flops: Floats
    head_flops: Floats
    attention_flops: Floats
    allreduce_bytes: Floats
    kernels: Floats
    allreduces: Floats
    weights_s: Floats
    kv_s: Floats
    gemm_s: Floats
    head_s: Floats
    attention_s: Floats
    allreduce_s: Floats
    launch_s: Floats

    @property
    def memory_s(self) -> Floats:
        """Time that device memory is busy at its peak."""
        return self.weights_s + self.kv_s

    @property
    def compute_s(self) -> Floats:
        """Time that the tensor cores are busy at their peak."""
        return self.gemm_s + self.head_s + self.attention_s


def terms(
    deployment: Deployment,
    prefill_tokens: Floats,
    batch: Floats,
    kv_tokens: Floats,
    prompts: Floats | float = 1.0,
) -> Terms:
    """Count the work of iterations of `deployment`.

    Parameters
    ----------
    prefill_tokens, batch, kv_tokens : (N,)
        Prompt tokens over all prompts; decoding sequences; KV-cache tokens of these together. As in
        :class:`qplan.models.iterations.IterationGrid`.
    prompts : (N,) or one number
        Prompts, of equal length, that the prompt tokens belong to; matters to attention alone.

    Raises
    ------
    InputError
        When the deployment spans several GPUs of a kind without an interconnect.
    """
    model, gpu, tp = deployment.model, deployment.gpu, deployment.tp
    prefill, decode, cached = (np.asarray(n, dtype=float) for n in (prefill_tokens, batch, kv_tokens))
    tokens = prefill + decode
    answers = decode + np.where(prefill > 0, prompts, 0.0)  # sequences that get a token, through the output head

    weight_bytes = weight_bytes_read(deployment, tokens)
    kv_bytes = deployment.kv_bytes_per_token * (cached + prefill + tokens)
    gemm_flops = 2 * _active_parameters(deployment) / tp * tokens
    head_flops = 2 * model.vocabulary * model.hidden_size / tp * answers
    attended = cached + prefill**2 / (2 * np.maximum(prompts, 1.0))  # causal: half of all pairs
    attention_flops = 4 * model.layers * model.heads * model.head_dim / tp * attended
    allreduce_bytes = (
        2 * (tp - 1) / tp * _ALLREDUCES_PER_LAYER * model.layers * model.hidden_size * _BYTES_16
    ) * tokens
    some = (tokens > 0).astype(float)
    kernels = KERNELS_PER_LAYER * model.layers * some
    return Terms(
        weight_bytes,
        kv_bytes,
        gemm_flops,
        head_flops,
        attention_flops,
        allreduce_bytes,
        kernels,
        (_ALLREDUCES_PER_LAYER * model.layers if tp > 1 else 0) * some,
        weight_bytes / (gpu.bandwidth_tb_s * 1e12),
        kv_bytes / (gpu.bandwidth_tb_s * 1e12),
        gemm_flops / peak_flops(gpu, deployment.quantization),
        head_flops / (gpu.tflops_16 * 1e12),
        attention_flops / (gpu.tflops_16 * 1e12),
        allreduce_bytes / _interconnect_bytes_s(deployment),
        kernels * LAUNCH_S,
    )


def peak_flops(gpu: Gpu, quantization: Quantization) -> float:
    """Return the peak in operations/s at which `gpu` multiplies in the format of `quantization`'s activations.

    Weight-only formats are multiplied at 16 bits after dequantization, as are 8-bit ones where the GPU has no such
    units.
    """
    peak = None
    if quantization.activations.bits <= 8:
        peak = gpu.tflops_fp8 if quantization.activations.kind == "float" else gpu.tops_int8
    return (peak or gpu.tflops_16) * 1e12


def weight_bytes_read(deployment: Deployment, tokens: Floats) -> Floats:
    """Return the bytes of weights, (N,), that one GPU reads for `tokens`: linear layers and output head, once."""
    model, quantization = deployment.model, deployment.quantization
    expert = 3 * model.hidden_size * model.intermediate_size * model.layers
    always = model.linear_parameters - expert * model.experts
    # Of E experts, tokens that each pick k evenly touch this many.
    touched = model.experts * (1 - (1 - model.experts_per_token / model.experts) ** tokens)
    linear = (always + expert * touched) * quantization.bits_per_weight
    head_bits = quantization.bits_per_weight if quantization.quantizes_embeddings else 16
    head = model.vocabulary * model.hidden_size * head_bits
    read: Floats = np.where(tokens > 0, linear + head, 0.0) / 8 / deployment.tp
    return read


def _active_parameters(deployment: Deployment) -> float:
    """Return the weights of linear layers that one token is multiplied by."""
    model = deployment.model
    idle = model.experts - model.experts_per_token
    return float(model.linear_parameters - 3 * model.hidden_size * model.intermediate_size * model.layers * idle)


def _interconnect_bytes_s(deployment: Deployment) -> float:
    if deployment.tp == 1:
        return 1.0  # nothing is sent
    if deployment.gpu.interconnect_gb_s is None:
        raise InputError(
            f"{deployment.name}: {deployment.gpu} has no known interconnect; expected tensor parallelism 1"
        )
    return deployment.gpu.interconnect_gb_s * 1e9
