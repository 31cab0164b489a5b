"""The diffusion scheduler: every forward is a batch of block rows."""
