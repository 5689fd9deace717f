"""Measurements that anyone can run: ``make bench``. Nothing is timed in tests."""

import kit as _kit  # before torch: it says how threads wait
