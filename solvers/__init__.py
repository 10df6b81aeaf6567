"""Decisions: how many replicas, which replica, which setting to measure next."""
