"""Deploy Ray Serve LLM's own application on a cluster: `python -m bench.gateway.ray_app ADDRESS PORT CONFIGS_JSON`."""

import json
import sys

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def deploy(address: str, port: int, configs: list[dict[str, object]]) -> None:
    """Returns when the application runs."""
    ray.init(address=address, log_to_driver=False, logging_level="WARNING")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_openai_app({"llm_configs": [LLMConfig(**config) for config in configs]}), name="llm", route_prefix="/")
    ray.shutdown()


if __name__ == "__main__":
    deploy(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
