"""Where directions come from: contrasts, probes, searches without labels, and their statistics."""
