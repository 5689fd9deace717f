"""Measurements that anyone can run: ``make bench``. Nothing is timed in tests."""
