"""A discrete-event simulator of serving with continuous batching."""
