from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qplan.core.errors import InputError
from qplan.core.gpu import Gpu, parse_inventory, parse_prices


def test_every_gpu_is_plausible_and_its_price_is_dated() -> None:
    for gpu in Gpu.catalogue():
        assert gpu.memory_gib > 0
        assert gpu.price_per_hour > 0
        assert gpu.price_source
        assert len(gpu.price_date.split("-")) == 3
        assert (gpu.tflops_fp8 is not None) == (gpu.compute_capability is not None and gpu.compute_capability >= (8, 9))
        assert gpu.tdp_w is None or gpu.idle_w is None or gpu.idle_w < gpu.tdp_w


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("a100", "A100-SXM4-80GB"),
        ("A100-40", "A100-SXM4-40GB"),
        ("H100", "H100-SXM5-80GB"),
        ("nvidia h200", "H200-SXM"),
        ("cpu", "CPU"),
    ],
)
def test_aliases_find_the_part(alias: str, name: str) -> None:
    assert Gpu.named(alias).name == name


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"--gpu: unknown GPU 'h10'.*did you mean 'h100'"):
        Gpu.named("h10")


def test_an_inventory_is_read_by_name() -> None:
    assert parse_inventory(("a100=16,h100=8", "l40s")) == {
        "A100-SXM4-80GB": 16,
        "H100-SXM5-80GB": 8,
        "L40S": math.inf,
    }


@pytest.mark.parametrize("text", ["a100=x", "a100=-1", "a100=1.5", "=3", "a100=1,A100-80=2", "b100=2", ""])
def test_a_wrong_inventory_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="--gpus"):
        parse_inventory((text,))


def test_a_user_price_replaces_the_list_price() -> None:
    assert parse_prices(("h100=2.99",)) == {"H100-SXM5-80GB": 2.99}
    gpu = Gpu.named("h100").priced(2.99)
    assert (gpu.price_per_hour, gpu.price_source, gpu.price_date) == (2.99, "--price", "")


@pytest.mark.parametrize("text", ["h100", "h100=", "h100=-2", "h100=nan", "h100=free"])
def test_a_wrong_price_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="--price"):
        parse_prices((text,))


@given(st.text(max_size=30))
def test_no_text_makes_the_lists_fail_otherwise(text: str) -> None:
    for parse in (parse_inventory, parse_prices):
        try:
            parse((text,), "--flag")
        except InputError as error:
            assert str(error).startswith("--flag: ")
