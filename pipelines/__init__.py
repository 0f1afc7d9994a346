"""Train, evaluate, gate and promote, once for every model kind."""
