"""Energy-aware routing: the optimal policy of a fleet, the online rule that follows it, and both in the simulator."""
