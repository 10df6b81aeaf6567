"""Campaigns: a plan file becomes a grid of points, each measured once and kept, whatever crashes."""
