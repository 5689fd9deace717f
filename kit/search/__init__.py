"""Where directions come from: contrasts, probes, and searches without labels, with their statistics."""
