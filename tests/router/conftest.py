from __future__ import annotations

from tests.measure.conftest import nvml_library as nvml_library
