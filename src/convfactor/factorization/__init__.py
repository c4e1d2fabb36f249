"""Factorize one kernel. Private: names may move."""
