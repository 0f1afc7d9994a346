"""Tests, the scripted upstream that they use, and the benchmark."""
