"""Kill parts of a simulated stack at random under a mixed load, then check what must hold whatever failed.

    python bench/chaos.py --seed 1 --kills 20 --minutes 3     # kills, spread over the minutes
    python bench/chaos.py --disconnects 999                   # clients that leave; the engines one second later
    python bench/chaos.py --kills 0 --minutes 30              # load alone: does memory grow?

Starts its own stack (two gateways), Postgres and NATS, and ends them. The same seed gives the same requests, the same
victims in the same order and the same pauses. Exit code 1 when an invariant is broken; its trace_ids are printed.
"""

from bench.chaos.command import main

if __name__ == "__main__":
    main()
