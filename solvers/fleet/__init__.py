"""Which replicas to run in each period of a horizon, for several classes of requests."""
