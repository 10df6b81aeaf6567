import pytest

from qplan.measure.quality.rouge import longest_common_subsequence, rouge_l


def test_the_example_of_the_paper() -> None:
    # Lin 2004, section 3.1: reference "police killed the gunman"; S1 keeps "police the gunman", S2 only "the gunman".
    reference = "police killed the gunman"
    assert rouge_l("police kill the gunman", reference) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", reference) == pytest.approx(0.5)
    assert rouge_l("the gunman police killed", reference) == pytest.approx(0.5)


def test_precision_and_recall_both_count() -> None:
    assert rouge_l("a b c d", "a b") == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert rouge_l("a b", "a b c d") == pytest.approx(2 * 0.5 * 1 / 1.5)


def test_case_and_marks_do_not_count() -> None:
    assert rouge_l("The cat, sat!", "the cat sat") == 1.0
    assert rouge_l("", "the cat") == 0.0
    assert rouge_l("dog", "the cat") == 0.0
    assert rouge_l("", "") == 0.0


def test_longest_common_subsequence() -> None:
    assert longest_common_subsequence("ABCBDAB", "BDCABA") == 4
    assert longest_common_subsequence("", "ABC") == 0
