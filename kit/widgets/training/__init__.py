"""A live view of a dictionary's training."""
