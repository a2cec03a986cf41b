"""Rule-based rewards: verifiers, format, language consistency, and how they add up. No neural model scores reasoning."""
