"""vLLM, in an environment of its own: ``QPLAN_VLLM`` names its ``vllm`` or its Python, else ``vllm`` is searched for.

Flags are those of vLLM 0.32. On a CPU (no devices) vLLM has fewer kernels, and two habits of its own that are undone
here; each is said where it is.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path

from qplan.core.errors import InputError
from qplan.core.model import Model
from qplan.core.quantization import KV16, NumberFormat, Quantization
from qplan.measure.engines.checkpoints import declared, prepare_checkpoint, weights_refusal
from qplan.measure.engines.contract import Prepared, Serving
from qplan.measure.engines.own_environment import (
    common_refusal,
    find_program,
    flag_list,
    installed_version,
    is_python,
    known_gpus,
    own_flag_refusal,
    visible,
)
from qplan.measure.engines.process import PORT, Launch, ServerProcess, start_process

_KV_DTYPES = {
    KV16: "auto",
    NumberFormat(8, "float"): "fp8",
    NumberFormat(8, "int"): "int8_per_token_head",
    NumberFormat(4, "int"): "int4_per_token_head",
}
_DTYPES = {"BF16": "bfloat16", "FP16": "float16"}
_MADE = ("W8A8-INT", "W8A16", "W4A16")
_ON_LOADING = {"W8A8-FP": "fp8"}  # --quantization: scales of the weights per tensor, of the activations dynamic
_ON_CPU = ("BF16", "FP16", "W8A8-INT", "W4A16", "W4A16-AWQ", "W4A16-GPTQ")
_ON_CPU_WITHOUT_AVX512 = (
    "BF16",
    "FP16",
    "W8A8-INT",
)  # 0.32 loads 4-bit weights there too, and fails at the first token
_OWN_FLAGS = {
    "model": "the weights",
    "served-model-name": "the model",
    "host": "the adapter",
    "port": "the adapter",
    "dtype": "the quantization",
    "quantization": "the quantization",
    "kv-cache-dtype": "the quantization",
    "tensor-parallel-size": "the tensor parallelism",
    "max-model-len": "the context",
    "max-num-seqs": "the number of sequences",
}
_KV_BLOCK_TOKENS = 128  # vllm/platforms/cpu.py
_LOGPROBS = 40  # quality is judged on the most likely tokens of each prompt position


class Vllm:
    """Adapter of ``vllm serve``.

    What is set unless :attr:`~qplan.measure.engines.contract.Serving.settings` says otherwise: no prefix caching, since
    prompts that are drawn with repetition would be measured as cache hits; sampling as the request says, whatever the
    checkpoint recommends; enough log-probabilities to judge quality; no log line a request. On a CPU also eager mode
    and a KV cache that holds ``max_sequences`` sequences of full length.
    """

    name = "vllm"

    def version(self) -> str:
        """Return the version of vLLM in its environment."""
        return installed_version(_program(), "vllm")

    def refusal(self, serving: Serving) -> str | None:
        """Say why vLLM cannot serve this, or return ``None``."""
        on_cpu = not serving.devices
        made = (*_DTYPES, *_MADE) if on_cpu else (*_DTYPES, *_MADE, *_ON_LOADING)
        quantization = serving.quantization
        if quantization.method == "gguf":
            return f"vllm is given Hugging Face checkpoints; {quantization.scheme} is a type of GGUF"
        return (
            (_cpu_refusal(quantization) if on_cpu else None)
            or own_flag_refusal("vllm", serving, _OWN_FLAGS)
            or common_refusal("vllm", serving, known_gpus(serving.devices))
            or weights_refusal(serving, made)
        )

    def prepare(self, serving: Serving, cache: Path) -> Prepared:
        """Find or make a checkpoint that carries the quantization; FP8 is left to vLLM when it loads."""
        return prepare_checkpoint(serving, cache / "checkpoints", _MADE)

    def start(self, serving: Serving, prepared: Prepared, folder: Path, *, deadline_s: float) -> ServerProcess:
        """Start the server and wait until it really serves."""
        return start_process(self.launch(serving, prepared), folder=folder, deadline_s=deadline_s)

    def launch(self, serving: Serving, prepared: Prepared) -> Launch:
        """Return the command for `serving`."""
        program, scheme = _program(), serving.quantization.scheme
        # The module starts rebuilds of vLLM too, whose `vllm` looks in vain for a distribution of its own name.
        module = ["-m", "vllm.entrypoints.openai.api_server", "--model"]
        flags: dict[str, str | int | float | bool] = {
            "served-model-name": serving.model,
            "host": "127.0.0.1",
            "port": PORT,
            **format_flags(serving.quantization),
            "tensor-parallel-size": serving.tp,
            "max-model-len": serving.context_tokens,
            "max-num-seqs": serving.max_sequences,
            "no-enable-prefix-caching": True,
            "generation-config": "vllm",
            "max-logprobs": _LOGPROBS,
            "disable-uvicorn-access-log": True,
        }
        if scheme in _ON_LOADING and declared(Path(prepared.weights)).is_16_bit:
            flags["quantization"] = _ON_LOADING[scheme]
        env = visible(serving.devices)
        if not serving.devices:
            # Compiling takes minutes on two cores and is not read back from vLLM's own cache (0.32).
            flags["enforce-eager"] = True
            if serving.tp == 1:
                # The worker of its own that vLLM starts otherwise is waited for by a process that spins on a core.
                flags["distributed-executor-backend"] = "uni"
                env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else it goes back to workers (vllm/platforms/cpu.py)
            flags |= _cpu_kv_cache(serving, Path(prepared.weights))
            # Where a CPU has AMX, vLLM runs W4A16 with 8-bit activations unless told not to (vllm/envs.py).
            env["VLLM_CPU_INT4_W4A8"] = "0"
        argv = [str(program), *(module if is_python(program) else ["serve"]), prepared.weights]
        argv += flag_list({**flags, **serving.settings})
        return Launch(tuple(argv), serving.model, self.version(), env)


def format_flags(quantization: Quantization) -> dict[str, str]:
    """Return the flags of `vllm serve` that follow from a quantization, whatever the checkpoint.

    Raises
    ------
    KeyError
        When the engine has no such KV cache.
    """
    return {"dtype": _DTYPES.get(quantization.scheme, "auto"), "kv-cache-dtype": _KV_DTYPES[quantization.kv]}


def _program() -> Path:
    return find_program("vLLM", "QPLAN_VLLM", "vllm", "pip install vllm")


def _cpu_refusal(quantization: Quantization) -> str | None:
    """Say what vLLM 0.32 lacks on this CPU, or return ``None``."""
    if quantization.kv.kind == "int":
        accepted = _KV_DTYPES[quantization.kv]
        return f"vllm on a CPU accepts {accepted} for the KV cache of {quantization} and answers garbage; take KV8-FP"
    avx512 = _has_avx512()
    schemes = _ON_CPU if avx512 else _ON_CPU_WITHOUT_AVX512
    where = "vllm on a CPU" if avx512 else "vllm on a CPU without AVX-512, as this one,"
    if quantization.scheme not in schemes:
        return f"{where} has no kernels for {quantization.scheme}; it has {', '.join(schemes)}"
    if quantization.kv != KV16 and not avx512:
        return f"{where} has no FP8 KV cache"
    return None


def _has_avx512() -> bool:
    """Whether this CPU has AVX-512; taken for granted where that cannot be read (vLLM says so when it starts)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True
    return "avx512f" in flags or "flags\t" not in flags  # no such line on other architectures


def _cpu_kv_cache(serving: Serving, checkpoint: Path) -> dict[str, int]:
    """Return the flag for a KV cache that holds every sequence; left alone, vLLM takes nearly all memory there is."""
    try:
        model = Model.from_file(checkpoint / "config.json", "weights")
    except InputError:
        return {}
    blocks = serving.max_sequences * ceil(serving.context_tokens / _KV_BLOCK_TOKENS) + 1  # vLLM keeps one for itself
    values = 2 * model.layers * model.kv_heads * model.head_dim * _KV_BLOCK_TOKENS * blocks
    return {"kv-cache-memory-bytes": values * serving.quantization.kv.bits // 8}
