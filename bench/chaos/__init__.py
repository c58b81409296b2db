"""Random kills under a mixed load, and what must hold afterwards. bench/chaos.py is the command."""
