"""Energy of a measured window: NVML, RAPL, or the reason why there is none."""
