"""Teachers: networks, and class scores on the training images, from a cache or from files."""
