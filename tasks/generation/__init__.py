"""Samplers behind one interface, and the Hugging Face folders that they read."""
