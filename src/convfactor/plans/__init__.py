"""Decisions as data, their files and their views. Private: names may move."""
