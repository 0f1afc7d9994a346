"""Prompt files: versioned in Git, indexed in MLflow."""
