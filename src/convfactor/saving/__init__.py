"""A rewritten model in a folder that needs no other weights. Private: names may move."""
