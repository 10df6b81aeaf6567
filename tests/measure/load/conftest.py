"""One fake server for all tests of the load generator: a request for a model named like a fault gets that fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.measure.fake_server import fake_server

TTFT_S, ITL_S = 0.02, 0.004


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with fake_server(ttft_s=TTFT_S, itl_s=ITL_S) as address:
        yield address
