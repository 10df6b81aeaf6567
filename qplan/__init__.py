"""qplan: measure, model and plan the serving of quantized large language models."""

__version__ = "0.1.0"
