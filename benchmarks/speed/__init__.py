"""How fast compiled models are, beside the strongest float rivals, in one process."""
