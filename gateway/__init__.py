"""The OpenAI-compatible inference gateway: request path, keys, request log, money and feedback."""
