"""The Dagster side: debates, and the jobs beside them.

Read debate.py first: the protocol. Its steps are ops.py and deciding.py, the job jobs.py, all of it definitions.py.
worker.py is the process that executes debates. Rooms: protocol (words, texts, strategies), warm (Dagster without its
start-up), running (a run taken to its end), launching (processes of their own, and Dagster's UI), entrypoints.
"""
