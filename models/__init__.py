"""What stands between measured points: serving models, surrogates, power, quality."""
