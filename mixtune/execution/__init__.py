"""Run one, run many, resume."""
