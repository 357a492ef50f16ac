"""The hot path: the only room where torch lives."""
