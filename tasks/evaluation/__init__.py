"""Evaluation: metrics as pure functions of stored samples."""
