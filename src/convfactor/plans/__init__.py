"""Decisions as data, their files and their views."""
