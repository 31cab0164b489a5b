"""Decoding policies and statistics: pure tensor code, no engine."""
