"""Training steps compiled for hardware that is not here: their memory, their work, their time."""
