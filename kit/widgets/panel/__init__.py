"""The steering panel: sliders on the left of it, a worker behind it, texts and receipts before it."""
