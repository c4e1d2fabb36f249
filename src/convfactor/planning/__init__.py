"""Decide for the layers of a model."""
