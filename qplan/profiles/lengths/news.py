"""CNN articles and their highlights, drawn from published statistics instead of the text.

Article and highlights are drawn as independent log-normals; the figures they rest on are the constants below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOURCE = (
    "NewsQA (CNN articles), approximated from published statistics: articles of 616 words on average "
    "(arXiv 1611.09830), highlights of 45.7 words (CNN, arXiv 1808.08745, table 1), 1.21 Llama-3 tokens a "
    "word, a question or instruction of 10 tokens; spread from MRQA 2019 (arXiv 1910.09753): an article cut "
    "at 800 tokens has 599 on average; the output is the highlights, since NewsQA's answers are spans of a "
    "few words"
)

TOKENS_PER_WORD = 1.21  # counted on plain English prose of ShareGPT answers, 3,959 of them
ARTICLE_TOKENS = 616 * TOKENS_PER_WORD
HIGHLIGHT_TOKENS = 45.70 * TOKENS_PER_WORD
INSTRUCTION_TOKENS = 10
# A log-normal of mean 745 whose values are capped at 800 has mean 599 at this spread.
ARTICLE_LOG_STD = 0.565
HIGHLIGHT_LOG_STD = 0.3  # assumed: most articles have three or four highlights of a sentence each


def news(requests: int, seed: int) -> NDArray[np.int64]:
    """Draw prompt and output tokens of `requests` summaries, shape (requests, 2)."""
    rng = np.random.default_rng(seed)
    articles = _log_normal(rng, ARTICLE_TOKENS, ARTICLE_LOG_STD, requests)
    highlights = _log_normal(rng, HIGHLIGHT_TOKENS, HIGHLIGHT_LOG_STD, requests)
    return np.column_stack([INSTRUCTION_TOKENS + articles, highlights])


def _log_normal(rng: np.random.Generator, mean: float, log_std: float, size: int) -> NDArray[np.int64]:
    draws = rng.lognormal(np.log(mean) - log_std**2 / 2, log_std, size)
    return np.maximum(1, np.rint(draws)).astype(np.int64)
