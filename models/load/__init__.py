"""Surrogates of measured observations over load."""
