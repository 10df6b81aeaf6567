"""Rendering: terminal tables and JSON. No decisions are made here."""
