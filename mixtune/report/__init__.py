"""Estimates → figures and one HTML file."""
