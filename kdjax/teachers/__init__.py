"""The class scores of a teacher on the training images, computed once or brought along."""
