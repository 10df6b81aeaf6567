"""Watts and joules: from what an iteration does to what it burns."""
