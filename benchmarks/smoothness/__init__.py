"""Deep models, the smoothness constraint, and how quantization errors add up over steps."""
