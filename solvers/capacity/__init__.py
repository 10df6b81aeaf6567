"""How many replicas of which deployment, for a given demand."""
