"""Measurements of the gateway beside its peers: see bench/gateway.py."""
