"""Quality of a quantized deployment, paired with its unquantized baseline."""
