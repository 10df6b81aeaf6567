"""What counts as sane: recorded outputs of real engines on both sides."""

from __future__ import annotations

import pytest

from qplan.measure.engines.readiness import PATTERNS, continues, describe

EXPECTED = [expected for _, expected in PATTERNS]

# greedy continuations of the three patterns by SmolLM2-135M-Instruct
SANE = {
    "vllm 0.32, BF16": ["", " Friday, Saturday, Sunday, Monday, Tuesday, Wednesday, Thursday, Friday,", ""],
    "xllamacpp 2026.10.11549, F16": [" 21, 22, 23,", " Friday, Saturday, Sunday, Monday, Tuesday,", " X Y Z A B C D E"],
    "xllamacpp 2026.10.11549, Q3_K": [
        " 21, 22, 23,",
        " Friday, Saturday, Sunday, Monday, Tuesday,",
        " X Y Z A B C D E",
    ],
    "xllamacpp 2026.10.11549, Q2_K": [" 21, 22, 23,", " and last day,\n\n- \n-\n\n", ".\n\n# (a)\n\nA by:"],
    "xllamacpp 2026.10.11549, Q2_K, KV q4_0": [" 21, 22, 22,", "   12.\n (a.3.", ".\n\n- A by A by A by A by"],
}
GARBAGE = {
    "vllm 0.32, V cache with wrong scales": ["------------------------", ",,,,,,,,,,,,,,,,,,,,,,,,", ""],
    "vllm 0.32, rotary halves of Q and K interleaved": [
        " 2, 2, 2, 2, 2, 2, 2, 2,",
        " Friday, March 20000000000000000000",
        "",
    ],
    "nothing": ["", " ", "\n"],
    "half of a character": ["\ufffd\ufffd\ufffd", "\ufffd, 22", "X\ufffd"],
    "almost": [" 2122", " Fridays, Saturday", " x y z"],
}


@pytest.mark.parametrize("source", SANE)
def test_working_engines_are_sane_down_to_the_weakest_quantization(source: str) -> None:
    assert any(continues(text, expected) for text, expected in zip(SANE[source], EXPECTED, strict=True))


@pytest.mark.parametrize("source", GARBAGE)
def test_what_does_not_go_on_with_a_pattern_is_not_sane(source: str) -> None:
    assert not any(continues(text, expected) for text, expected in zip(GARBAGE[source], EXPECTED, strict=True))


def test_a_chat_model_may_say_something_first() -> None:
    reply = "Sure! Here is the continuation: **21, 22, 23**"
    assert continues(reply, "21 22", anywhere=True)
    assert not continues(reply, "21 22")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("\n\n", "it is empty"),
        ("\ufffd\ufffda\ufffd", "it is not UTF-8, '\ufffd\ufffda\ufffd'"),
        ("!!!!!!!!", "it repeats '!'"),
        (" foo foo foo foo foo", "it repeats 'foo'"),
        (" Heart ially\nvest", "it says 'Heart ially vest'"),
    ],
)
def test_garbage_is_described(text: str, says: str) -> None:
    assert describe(text) == says
