"""What the workflow route costs, as ratios taken in one run on one machine.

    python bench/workflow.py [--rounds 30] [--ray-rounds 5] [--only first-token,ray,ray-debate,tasks,runs,terminate]

Starts its own stack with simulated replicas, and ends it. The figures: the way to a debate's first token without the
replica's own time; the same through a Ray job per run (`ray`: RayRunLauncher and a job that does nothing, the least that
it can take; `ray-debate`: the same debates on a second stack with debate_launch=ray); three tasks against the slowest
one alone; debates a second of one worker whose queue is never empty, with replicas that cost nothing; and Terminate in
Dagster's UI. Exit code 1 when a goal is missed.
"""

from bench.workflow.command import main

if __name__ == "__main__":
    main()
