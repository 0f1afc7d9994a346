"""The subcommands of `llmops`, one module each; imported only when they are called."""
