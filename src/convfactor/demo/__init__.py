"""The demo: a small super-resolution network of our own and the photographs it is shown on."""
