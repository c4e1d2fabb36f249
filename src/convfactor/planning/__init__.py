"""Decide for the layers of a model. Private: names may move."""
