"""Factorize one kernel."""
