"""Observations: their schema, the store that keeps them, the packs and importers that bring them.

One CSV file, ``schema.csv``, names every column with its type, unit and meaning; validation, SQL tables,
Parquet files and documentation all read it.
"""
