"""`llmops demo`: simulated users drive the whole loop on the running stack; a report of it."""
