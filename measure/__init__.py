"""The measuring side: real engines under open-loop load, their energy, their quality, and campaigns of all three."""
