"""The highest open-loop rate that meets the SLOs, searched for with sequential statistics."""
