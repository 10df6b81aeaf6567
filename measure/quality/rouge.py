"""ROUGE-L: how much of a reference summary's word order a summary keeps.

Chin-Yew Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1: with L the length of the
longest common subsequence of words, recall is L over the words of the reference, precision L over those of the
summary, and the score is their F-measure with beta = 1. Words are runs of letters and digits, lowercased, not stemmed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")


def rouge_l(summary: str, reference: str) -> float:
    """Return the ROUGE-L F-measure of a summary, 0 to 1."""
    ours, theirs = (_WORD.findall(text.casefold()) for text in (summary, reference))
    common = longest_common_subsequence(ours, theirs)
    if common == 0:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, in time ``len(a) * len(b)``."""
    row = [0] * (len(b) + 1)
    for word in a:
        above_left = 0
        for column, other in enumerate(b, 1):
            above = row[column]
            row[column] = above_left + 1 if word == other else max(above, row[column - 1])
            above_left = above
    return row[-1]
