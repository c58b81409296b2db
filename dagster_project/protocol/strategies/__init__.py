"""How a debate is decided: one module per strategy. Pure."""
