"""The steering panel: sliders to its left, a worker behind it, texts and receipts before it."""
