"""Training float networks, to have something to quantize."""
