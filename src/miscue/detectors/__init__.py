"""Who says that an image was tampered with: `(model, x) -> scores (n,)`, and a threshold calibrated on clean images."""
