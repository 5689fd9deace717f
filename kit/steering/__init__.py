"""Steering: vectors, the one intervention path, the one decode loop, reports and checks."""
