"""A model: what it calls, and what stands in its place. Private: names may move."""
