"""Rewards and how they add up: verifiers, format and language consistency by rule; reward models for open prompts, never for reasoning."""
