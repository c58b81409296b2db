"""This gateway beside its peers: the same work through each, interleaved, in one run on one machine.

    python bench/gateway.py [--only NAMES] [--rounds 60] [--passes 2] [--raw FILE] [--state FOLDER] [--engine simulated|vllm]
    python bench/gateway.py --report FILE…

The work is put to the bare engine (an OpenAI server in front of the engine, no gateway), to the whole application through
HAProxy (`aifactory`: the cache bypassed by a header; `aifactory-cache`: as it comes, so that each new question is embedded
and looked up), to Ray Serve LLM's own ingress with the same Serve settings as ours (`ray`) and as it comes (`ray-default`),
to the LiteLLM proxy and to vllm-router; the last two stand in front of the bare engine's server. All get the same bytes,
and their answers are compared. API keys are asked for where a candidate knows them (ours, LiteLLM's master key).

One candidate at a time stands beside the bare engine, because idle ones cost a fifth of two cores; its requests and the
engine's alternate, and what it adds is taken over the engine's median beside it. All candidates come once in each pass.
With --together all stand at once and are measured in turns, request by request (latency) or step by step (load).
LiteLLM and vllm-router are installed in environments of their own under --state; Ray Serve LLM is the one that this
environment has, because the product runs on the same. A candidate that cannot be had is in the table, with the reason.
Raw figures go to bench/out as JSON lines; --report makes the table of such files. Exit code 1 when a goal is missed.
`--engine vllm` has the small CPU model of configuration `local` everywhere.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.gateway.command import main

if __name__ == "__main__":
    main()
