"""Formulas: numbers in, numbers out; no telemetry and no I/O."""
