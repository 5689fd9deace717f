"""Views of a lens."""
