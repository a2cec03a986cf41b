"""Training: the GRPO objective, micro-batches, lanes of worker processes, and checkpoints. Knows nothing of sampling."""
