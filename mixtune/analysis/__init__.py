"""Scores → estimates, from the store alone."""
