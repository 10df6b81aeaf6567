"""A prior corrected by a few measurements of one's own system."""
