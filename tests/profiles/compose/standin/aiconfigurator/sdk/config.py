"""Configurations, with the fields that the worker and the checks use."""

from __future__ import annotations

from dataclasses import dataclass

from aiconfigurator.sdk import common


@dataclass
class ModelConfig:
    tp_size: int = 1
    gemm_quant_mode: common.GEMMQuantMode = common.GEMMQuantMode.float16
    fmha_quant_mode: common.FMHAQuantMode = common.FMHAQuantMode.float16
    kvcache_quant_mode: common.KVCacheQuantMode = common.KVCacheQuantMode.float16


@dataclass
class RuntimeConfig:
    batch_size: int
    isl: int
    osl: int
    beam_width: int = 1
    prefix: int = 0
