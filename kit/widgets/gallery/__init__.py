"""The gallery: a card for every feature that a search found."""
