"""What measured loads say of the claims that studies of quantized serving make."""
