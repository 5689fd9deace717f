"""Steering: vectors, the one intervention path, the one decode loop, what they report, and checks."""
