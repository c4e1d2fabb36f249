"""One convolution and the cascade in its place. Private: names may move."""
