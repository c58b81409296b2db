"""aifactory's serving side: gateway, request lifecycle, store, bus, replicas."""
