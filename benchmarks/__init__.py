"""Measurements, kept apart from the tests: figures depend on the machine, facts do not."""
