"""Checkpoints on disk: what they say of their quantization, how many bits they really store, and making others of them.

::

    a GGUF file ──► Hugging Face folder ──► quantized folder        each made once, below the cache, in one rename
      checkpoints_gguf      checkpoints_rtn

A checkpoint that carries its own quantization is served as it is, if it is what was asked for.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from qplan.core.errors import InputError
from qplan.core.quantization import KV16, NumberFormat, Quantization
from qplan.measure.engines.checkpoints_gguf import weight_types, write_checkpoint
from qplan.measure.engines.checkpoints_rtn import quantize
from qplan.measure.engines.checkpoints_tensors import Entry, read_header
from qplan.measure.engines.contract import Prepared, Serving
from qplan.measure.engines.gguf_weights import NAMED_WEIGHTS, find_weights

_RECIPE_VERSION = 1  # raised when what is made changes, so that nothing older is taken for it

_FP8, _INT8 = NumberFormat(8, "float"), NumberFormat(8, "int")

# tensorrt_llm/quantization/mode.py, QuantAlgo; the formats that the names stand for
QUANT_ALGOS = {
    "W8A16": "W8A16",
    "W4A16": "W4A16",
    "W4A16_AWQ": "W4A16-AWQ",
    "W4A8_AWQ": "W4A8-FP",
    "W8A16_GPTQ": "W8A16-GPTQ",
    "W4A16_GPTQ": "W4A16-GPTQ",
    "W8A8_SQ_PER_CHANNEL": "W8A8-INT",
    "W8A8_SQ_PER_TENSOR_PLUGIN": "W8A8-INT",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": "W8A8-INT",
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN": "W8A8-INT",
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN": "W8A8-INT",
    "W4A8_QSERVE_PER_GROUP": "W4A8",
    "W4A8_QSERVE_PER_CHANNEL": "W4A8",
    "FP8": "W8A8-FP",
    "FP8_PER_CHANNEL_PER_TOKEN": "W8A8-FP",
    "FP8_BLOCK_SCALES": "W8A8-FP",
    "NVFP4": "W4A4-FP",
}
"""ModelOpt's ``quant_algo`` to the scheme of the catalogue; names of mixes and of newer formats have none."""

_KV_ALGOS = {"FP8": _FP8, "INT8": _INT8, None: None}


@dataclass(frozen=True, slots=True)
class Declared:
    """What a checkpoint says of its own quantization.

    Attributes
    ----------
    weights, activations
        Number formats; ``None`` where it says something that qplan has no name for.
    method
        ``awq``, ``gptq`` ... where it says how the weights were found; ``None`` where only formats are named.
    kv
        Format of the KV cache that its scales are for; ``None`` where it leaves that open.
    name
        In the checkpoint's own words, for messages.
    writer
        Format of the checkpoint: ``compressed-tensors``, ``modelopt``, ``awq`` ...
    """

    weights: NumberFormat | None
    activations: NumberFormat | None
    method: str | None
    kv: NumberFormat | None
    name: str
    writer: str = ""

    @property
    def is_16_bit(self) -> bool:
        """Whether nothing is quantized, and nothing said of the KV cache."""
        return self.weights == self.activations == KV16 and self.kv is None

    def mismatch(self, asked: Quantization, where: str) -> str | None:
        """Say how the checkpoint `where` differs from what was asked, naming both, or return ``None``."""
        formats = (self.weights, self.activations) == (asked.weights, asked.activations)
        method = self.method is None or self.method == asked.method
        kv = self.kv is None or self.kv == asked.kv
        return None if formats and method and kv else f"{where} is quantized as {self.name}, but {asked} was asked for"


def locate(weights: str) -> Path | None:
    """Return the folder of a checkpoint given by path or Hub id; ``None`` for a Hub id that is not on this machine."""
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return folder
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub") / f"models--{weights.replace('/', '--')}"
    try:
        snapshot = hub / "snapshots" / (hub / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return snapshot if snapshot.is_dir() else None


def declared(folder: Path) -> Declared:
    """Read what the checkpoint in `folder` says of its quantization.

    Raises
    ------
    InputError
        There is no ``config.json``, or what it or ``hf_quant_config.json`` says cannot be read.
    """
    config = _read_json(folder / "config.json")
    said = config.get("quantization_config") or config.get("compression_config") or {}
    if (folder / "hf_quant_config.json").exists():
        said = {"quant_method": "modelopt", **_read_json(folder / "hf_quant_config.json")}
    try:
        return _understood(said)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"weights: {folder}: cannot read what it says of its quantization ({error!r})") from None


def _understood(said: dict[str, Any]) -> Declared:
    if not said:
        return Declared(KV16, KV16, "none", None, "16 bits")
    method = str(said.get("quant_method", "")).casefold()
    if method.startswith("modelopt"):
        return _modelopt({**said, **said.get("quantization", {})})
    if method == "compressed-tensors":
        return _compressed_tensors(said)
    if method in ("awq", "gptq"):
        bits = int(said.get("bits", said.get("w_bit", 4)))
        return Declared(NumberFormat(bits, "int"), KV16, method, None, f"W{bits}A16-{method.upper()}")
    if method in ("fp8", "fbgemm_fp8"):
        return Declared(_FP8, _FP8, "fp8", None, "W8A8-FP")
    if method == "bitsandbytes" and said.get("load_in_8bit"):
        return Declared(_INT8, _INT8, "llm.int8", None, "LLM.int8()")
    return Declared(None, None, None, None, f"'{method or said}'")


def measured_bits(folder: Path) -> float:
    """Return the bits of all tensors of a checkpoint, scales included, over the number of weights they stand for."""
    config = _read_json(folder / "config.json").get("quantization_config") or {}
    groups = list((config.get("config_groups") or {}).values())
    bits = config.get("bits") or (groups[0]["weights"]["num_bits"] if groups else 4)
    stored, weights = 0, 0
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in read_header(file).items():
            stored += 8 * entry.stored_bytes
            weights += _weights_in(name, entry, int(bits))
    if not weights:
        raise InputError(f"{folder}: no weights in *.safetensors files")
    return stored / weights


def weights_refusal(serving: Serving, made: Collection[str]) -> str | None:
    """Say why the weights of `serving` cannot be served as asked by an engine for which `made` schemes can be made.

    Those are the 16-bit ones, what :func:`prepare_checkpoint` makes, and what the engine itself makes when it loads.
    """
    quantization = serving.quantization
    if _is_gguf(serving.weights):
        said, where = Declared(KV16, KV16, "none", None, "16 bits"), serving.weights
    else:
        folder = locate(serving.weights)
        if folder is None:
            return (
                f"weights: no folder '{serving.weights}', nor a model of that name from the Hub on this machine; "
                f"download it first: hf download {serving.weights}"
            )
        try:
            said, where = declared(folder), str(folder)
        except InputError as error:
            return str(error)
    if not said.is_16_bit:
        return said.mismatch(quantization, f"weights: {where}")
    if quantization.scheme not in made:
        return (
            f"weights: {where} is not quantized, and {quantization.scheme} is not made here; give a checkpoint that is"
        )
    return None


def prepare_checkpoint(serving: Serving, cache: Path, made: Collection[str]) -> Prepared:
    """Find or make weights that carry the asked quantization; schemes that are not `made` are left to the engine.

    Raises
    ------
    InputError
        There are no such weights, or they are quantized otherwise than asked.
    """
    scheme = serving.quantization.scheme
    if _is_gguf(serving.weights):
        gguf = find_weights(serving.weights)
        source = make_once(
            cache / f"{gguf.stem}-BF16-{_fingerprint(gguf)}", lambda folder: write_checkpoint(gguf, folder)
        )
        origin = f"{weight_types(gguf)} of {gguf.name} dequantized to BF16"
    else:
        folder = locate(serving.weights)
        if folder is None:
            raise InputError(f"weights: no folder '{serving.weights}', nor a Hub model of that name on this machine")
        source, origin = folder, "as given"
    said = declared(source)
    if not said.is_16_bit:
        mismatch = said.mismatch(serving.quantization, f"weights: {source}")
        if mismatch is not None:
            raise InputError(mismatch)
        return Prepared(str(source), measured_bits(source), f"as given, {said.name}")
    if serving.quantization.weights == KV16:
        return Prepared(str(source), measured_bits(source), origin)
    if scheme not in made:
        return Prepared(str(source), None, f"{origin}, quantized to {scheme} by the engine when it loads")
    name = f"{source.name}-{scheme}-{_fingerprint(*sorted(source.glob('*.safetensors')))}"
    target = make_once(cache / name, lambda folder: quantize(source, folder, scheme))
    recipe = f"{origin}, rounded to nearest in {scheme}, one scale for {_share(target)}, compressed-tensors"
    return Prepared(str(target), measured_bits(target), recipe)


def make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder `target`, filled by `make` unless it is there; somebody else who makes it is waited for."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            partial = target.parent / f".{target.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a preparation that was killed
            partial.mkdir()
            make(partial)
            partial.rename(target)
    return target


def _is_gguf(weights: str) -> bool:
    return weights in NAMED_WEIGHTS or weights.endswith(".gguf")


def _share(folder: Path) -> str:
    (group,) = _read_json(folder / "config.json")["quantization_config"]["config_groups"].values()
    size = group["weights"]["group_size"]
    return f"{size} weights" if size else "a row"


def _fingerprint(*files: Path) -> str:
    """Tell files apart by name, size and time of change: checkpoints are too large to be read for it."""
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr((_RECIPE_VERSION, facts)).encode()).hexdigest()[:12]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"weights: {path} cannot be read; expected a Hugging Face checkpoint") from None
    except ValueError as error:
        raise InputError(f"weights: {path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"weights: {path} holds no JSON object")
    return content


def _modelopt(said: dict[str, Any]) -> Declared:
    algo, kv_algo = said.get("quant_algo"), said.get("kv_cache_quant_algo")
    name = f"{algo or '16 bits'}{f' with KV cache {kv_algo}' if kv_algo else ''}"
    kv = _KV_ALGOS.get(kv_algo, NumberFormat(4, "float"))
    if algo is None:
        return Declared(KV16, KV16, "none", kv, name)
    if algo not in QUANT_ALGOS:
        return Declared(None, None, None, kv, name)
    scheme = Quantization.parse(QUANT_ALGOS[algo])
    # FP8 in its three granularities and SmoothQuant's five are one scheme to us; AWQ and GPTQ are methods.
    method = scheme.method if scheme.method in ("awq", "gptq", "qserve") else None
    return Declared(scheme.weights, scheme.activations, method, kv, name)


def _compressed_tensors(said: dict[str, Any]) -> Declared:
    def number(entry: dict[str, Any] | None) -> NumberFormat:
        return KV16 if entry is None else NumberFormat(int(entry["num_bits"]), str(entry["type"]))

    groups = {
        (number(group.get("weights")), number(group.get("input_activations")))
        for group in (said.get("config_groups") or {}).values()
    }
    kv = number(said["kv_cache_scheme"]) if said.get("kv_cache_scheme") else None
    if len(groups) != 1:
        return Declared(None, None, None, kv, "a mix of formats (compressed-tensors)")
    ((weights, activations),) = groups
    kind = {"int": "-INT", "float": "-FP"}[weights.kind]
    name = f"W{weights.bits}A{activations.bits}{kind} (compressed-tensors)"
    return Declared(weights, activations, None, kv, name, "compressed-tensors")


def _weights_in(name: str, entry: Entry, bits: int) -> int:
    """Return how many weights of the model a tensor stands for; scales, zero points and shapes stand for none."""
    last = name.rpartition(".")[2]
    if last in ("weight_packed", "qweight"):
        return 8 * entry.stored_bytes // bits
    if last == "weight" and entry.dtype == "U8":  # two 4-bit weights a byte: NVFP4
        return 2 * prod(entry.shape)
    return prod(entry.shape) if last in ("weight", "bias") else 0
