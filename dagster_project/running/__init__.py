"""A worker's runs, each taken to its end: pulled from the queue, executed in this process, taken up after a death."""
