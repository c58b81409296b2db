"""Errands on the Ray cluster, each in a process of its own: `python -m serve_app.local.on_cluster ERRAND ADDRESS SETTINGS`.

Ray reads its login and its Serve switches from the environment when it is imported, and takes seconds to
import; a short-lived process keeps both out of the command line.
"""

import json
import sys
from pathlib import Path

from serve_app.settings import APP_NAME, WORKER_APP_NAME, Settings, settings_from_dict

ERRANDS = ("deploy", "stats", "withdraw")


def run_errand(errand: str, address: str, settings: Settings) -> None:
    """Connect to the cluster and deploy the applications, print the replicas' load as JSON, or remove the applications."""
    import ray
    from ray import serve

    ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    try:
        if errand == "deploy":
            from serve_app.app import deploy

            deploy(settings)
        elif errand == "stats":
            from serve_app.app import replica_stats

            sys.stdout.write(json.dumps(replica_stats(settings)) + "\n")
        else:
            # Together: each drains for half a minute.
            for name in (APP_NAME, WORKER_APP_NAME):
                serve.delete(name, _blocking=False)
            for name in (APP_NAME, WORKER_APP_NAME):
                serve.delete(name)
            if not serve.status().applications:
                # Nobody else uses Serve here, so it was started for us.
                serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    run_errand(sys.argv[1], sys.argv[2], settings_from_dict(json.loads(Path(sys.argv[3]).read_text())))
