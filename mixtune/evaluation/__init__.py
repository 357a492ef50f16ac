"""Predict and score: task × model → predictions → scores."""
