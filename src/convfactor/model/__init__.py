"""A model: what it calls, and what stands in its place; no decision is taken here. Private: names may move."""
