"""How sure a prediction is: conformal intervals, support, refusal."""
