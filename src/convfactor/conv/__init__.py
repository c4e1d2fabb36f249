"""One convolution and the cascade in its place: algebra, layer, moments, errors. Private: names may move."""
