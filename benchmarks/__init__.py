"""Measurements of llada_sglang against the host's own diffusion mode. Run from the repository."""
