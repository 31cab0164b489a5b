"""Device detection, and the CPU platform for machines without an accelerator."""
