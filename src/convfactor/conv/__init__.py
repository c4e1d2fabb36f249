"""One convolution and the cascade in its place: algebra, layers, moments, errors."""
