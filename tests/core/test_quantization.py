from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.quantization import KV16, NumberFormat, Quantization

KV_SUFFIXES = ("", "-KV8-INT", "-KV8-FP", "-KV4-INT")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("fp16", "FP16"),
        ("bfloat16", "BF16"),
        ("W8A16-INT", "W8A16"),
        ("w4a16", "W4A16"),
        ("awq", "W4A16-AWQ"),
        ("GPTQ", "W4A16-GPTQ"),
        ("SmoothQuant", "W8A8-INT"),
        ("fp8", "W8A8-FP"),
        ("W8A8KV8-FP", "W8A8KV8-FP"),
        ("W8A8-FP-KV8-FP", "W8A8KV8-FP"),
        ("W8A8-FP-KV8", "W8A8KV8-FP"),
        ("W8A8KV8-INT", "W8A8KV8-INT"),
        ("W8A8-INT-KV8-FP", "W8A8-INT-KV8-FP"),
        ("W4A16KV8-INT", "W4A16-KV8-INT"),
        ("qserve", "W4A8"),
        ("W4A8KV4", "W4A8KV4"),
        ("LLM.int8()", "LLM.int8()"),
        ("spqr-3bit", "SpQR-3bit"),
        ("q4_k_m", "Q4_K_M"),
        ("Q4_0-KV8-INT", "Q4_0-KV8-INT"),
    ],
)
def test_every_spelling_of_the_field_has_one_canonical_form(text: str, canonical: str) -> None:
    assert str(Quantization.parse(text)) == canonical


@pytest.mark.parametrize("suffix", KV_SUFFIXES)
@pytest.mark.parametrize("scheme", [scheme.scheme for scheme in Quantization.catalogue()])
def test_what_is_printed_reads_back_as_the_same(scheme: str, suffix: str) -> None:
    one = Quantization.parse(scheme + suffix)
    assert Quantization.parse(str(one)) == one
    assert one.scheme == scheme


def test_the_kv_format_is_told_apart_from_the_weights() -> None:
    one = Quantization.parse("W4A16-KV8-FP")
    assert one.weights == NumberFormat(4, "int")
    assert one.kv == NumberFormat(8, "float")
    assert Quantization.parse("W4A16").kv == KV16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("W8A8", "expected W8A8-INT or W8A8-FP"),
        ("W4A16-KV8", "cannot tell the KV-cache format"),
        ("BF16-KV2-INT", "cannot tell the KV-cache format"),
        ("W5A16", "did you mean 'W[48]A16'"),
        ("", "unknown quantization"),
    ],
)
def test_an_unknown_notation_says_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--quant: .*{message}"):
        Quantization.parse(text)


@given(st.text(max_size=30) | st.from_regex(r"W\d{1,2}A\d{1,2}(KV\d{1,2})?(-(INT|FP))?", fullmatch=True))
def test_no_text_makes_the_notation_fail_otherwise(text: str) -> None:
    try:
        Quantization.parse(text)
    except InputError as error:
        assert str(error).startswith("--quant: ")


def test_fp8_refuses_on_ampere_with_a_reason() -> None:
    a100 = Gpu.named("a100")
    assert Quantization.parse("W8A8-FP").refusal(a100) == (
        "W8A8-FP needs FP8 tensor cores (compute capability 8.9); A100-SXM4-80GB (Ampere) has 8.0"
    )
    assert "FP8 KV cache" in (Quantization.parse("BF16-KV8-FP").refusal(a100) or "")


@pytest.mark.parametrize(
    ("quantization", "gpu", "runs"),
    [
        ("W8A8-FP", "h100", True),
        ("W8A8-FP", "l40s", True),
        ("W8A8-INT", "a100", True),
        ("W8A8-INT", "v100", False),
        ("W4A4-FP", "h200", False),
        ("W4A4-FP", "b200", True),
        ("BF16", "t4", False),
        ("FP16", "t4", True),
        ("W4A16", "cpu", True),
        ("W8A8-FP", "cpu", False),
        ("Q4_K_M", "cpu", True),
    ],
)
def test_a_gpu_runs_what_it_has_kernels_for(quantization: str, gpu: str, *, runs: bool) -> None:
    assert (Quantization.parse(quantization).refusal(Gpu.named(gpu)) is None) is runs


def test_scales_and_outliers_count_as_bits() -> None:
    bits = {str(one): one.bits_per_weight for one in Quantization.catalogue()}
    assert bits["BF16"] == 16
    assert bits["W4A16-AWQ"] == pytest.approx(4 + (16 + 4) / 128)
    assert bits["Q4_0"] == 4.5
    assert bits["SpQR-3bit"] == pytest.approx(3 + 6 / 16 + 64 / 256 + 0.32)
    assert all(one.bits_per_weight >= one.weights.bits for one in Quantization.catalogue())
