"""What single notebooks measure with, and nobody else: 07 and ``data/organisms`` (elicitation,
recovery), 08 (multiplicity, locality), 12 (rank)."""
