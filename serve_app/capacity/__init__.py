"""How much load a system carries: measured over HTTP, predicted from a small model of a replica, and what follows for its knobs.

Read study.py first. Nothing here knows Ray, Postgres or NATS: it speaks HTTP and computes.
"""
