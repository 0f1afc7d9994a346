"""The composition root: the llmops command and the stack on one machine."""
