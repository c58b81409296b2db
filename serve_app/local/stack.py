"""The embedded stack: start it, part by part. READ THIS to know what runs on a machine after `aifactory up`.

Each part is written to the state file the moment it starts, so that whatever kills us leaves a stack that the
next `up` or `down` recognises. Parts that the settings replace (postgres_dsn, nats_url, ray_address) are only asked.
"""

import contextlib
import shutil

from pydantic import SecretStr

from serve_app.local import deployment, nats, postgres
from serve_app.local.dagster_home import DagsterUi, code_socket, database_name, home_dir, write_home
from serve_app.local.files import write_private
from serve_app.local.model import needs_conversion, resolve_model
from serve_app.local.nats import EmbeddedNats
from serve_app.local.ports import choose_port
from serve_app.local.postgres import EmbeddedPostgres
from serve_app.local.processes import child_environment
from serve_app.local.progress import Progress
from serve_app.local.ray_node import choose_ray_ports
from serve_app.local.run_dir import run_dir_for
from serve_app.local.serve_file import serve_config, serve_file
from serve_app.local.state import StackState, load_state, save_state, settings_file
from serve_app.local.teardown import ray_of, running, stack_processes, tear_down
from serve_app.model_files import resolve_embedding
from serve_app.settings import Settings, settings_to_dict
from serve_app.tracing import check_tracing

_RECOVERY_S = 20.0


class StackError(RuntimeError):
    """The stack cannot be started as asked."""


class Stack:
    """One start of one stack. The caller holds the stack's lock."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self._dir = settings.state_dir.resolve()
        self._logs = self._dir / "logs"
        # What the parts get: absolute, because they run in other folders.
        self._settings = settings.model_copy(update={"state_dir": self._dir})
        self._progress = progress
        self._state = self._plan()

    def up(self) -> StackState:
        """Start everything and wait until the API says that it is ready. On any failure what was started is ended again."""
        try:
            self._start()
        except BaseException:
            with contextlib.suppress(OSError):  # the terminal may be gone, the processes must go all the same
                self._progress.note("  ending what was started …")
            tear_down(self._dir, self._state)
            raise
        return self._state

    def _start(self) -> None:
        check_tracing(self._settings)
        self._dir.mkdir(parents=True, exist_ok=True)
        self._keep_previous_logs()
        self._launch_ray()
        self._start_postgres()
        self._start_nats()
        self._write_settings()
        dagster = self._launch_code_server()
        self._migrate()
        self._prepare_models()
        self._wait_for_ray()
        # Both take long and wait much: side by side.
        self._launch_dagster(dagster)
        self._deploy()
        self._wait_for_dagster(dagster)
        self._state.phase = "ready"
        save_state(self._state)

    def _plan(self) -> StackState:
        """Choose the ports, and say which had to move aside."""
        settings = self._settings
        taken: set[int] = set()

        def choose(wanted: int, who: str) -> int:
            port = choose_port(wanted, taken)
            if wanted not in (0, port):
                self._progress.note(f"  port {wanted} for {who} is taken, using {port}")
            return port

        return StackState(
            config=settings.config,
            state_dir=self._dir,
            run_dir=run_dir_for(self._dir),
            host=settings.host,
            api_port=choose(settings.port, "the API"),
            dagster_port=choose(settings.dagster_port, "Dagster"),
            postgres_port=None if settings.postgres_dsn else choose(settings.postgres_port, "Postgres"),
            nats_port=None if settings.nats_url else choose(settings.nats_port, "NATS"),
            ray_ports=None
            if settings.ray_address
            else choose_ray_ports(settings.ray_port, settings.ray_dashboard_port, choose, taken),
            postgres_dsn=settings.postgres_dsn.get_secret_value() if settings.postgres_dsn else None,
            nats_url=settings.nats_url.get_secret_value() if settings.nats_url else None,
            ray_address=settings.ray_address,
        )

    def _launch_ray(self) -> None:
        """Ray's start takes seconds: let it run while the others start."""
        node = ray_of(self._state, self._settings.ray_num_cpus)
        if node is not None:
            self._state.ray_address = node.address
            self._state.processes["ray"] = node.launch({"DAGSTER_HOME": str(home_dir(self._settings))})
            save_state(self._state)

    def _wait_for_ray(self) -> None:
        node = ray_of(self._state)
        if node is not None:
            with self._progress.step("ray"):
                node.wait(self._state.processes["ray"])

    def _start_postgres(self) -> None:
        with self._progress.step("postgres"):
            if self._state.postgres_port is not None:
                server = EmbeddedPostgres(
                    self._dir / "postgres", self._state.postgres_port, self._logs / "postgres.log", mark=self._dir
                )
                self._state.processes["postgres"] = server.start()
                self._state.postgres_dsn = server.dsn()
                save_state(self._state)
            elif trouble := postgres.probe(self._dsn()):
                raise StackError(f"your Postgres (AIFACTORY_POSTGRES_DSN) does not answer: {trouble}")
            postgres.ensure_database(self._dsn(), database_name())

    def _start_nats(self) -> None:
        with self._progress.step("nats"):
            if self._state.nats_port is not None:
                server = EmbeddedNats(self._dir / "nats", self._state.nats_port, self._logs / "nats.log", mark=self._dir)
                self._state.processes["nats"] = server.start()
                self._state.nats_url = server.url()
                save_state(self._state)
            elif trouble := nats.probe(self._state.nats_url or ""):
                raise StackError(f"your NATS (AIFACTORY_NATS_URL) does not answer: {trouble}")

    def _migrate(self) -> None:
        with self._progress.step("migrations", "applied"):
            deployment.migrate(self._dsn())

    def _prepare_models(self) -> None:
        models_dir = self._dir / "models"
        log = self._logs / "model.log"
        resolve_embedding(self._settings.embedding_source, self._settings.embedding_sha256)
        models = []
        for model in self._settings.models:
            if model.source is None:
                models.append(model)
                continue
            if needs_conversion(model.source, models_dir):
                with self._progress.step(f"model {model.model_id}", "converted, once for all"):
                    source = resolve_model(model.source, models_dir, log, mark=self._dir)
            else:
                source = resolve_model(model.source, models_dir, log, mark=self._dir)
            models.append(model.model_copy(update={"source": source}))
        self._settings = self._settings.model_copy(update={"models": models})
        self._write_settings()

    def _write_settings(self) -> None:
        """The settings with every address filled in, for those who run elsewhere."""
        state = self._state
        self._settings = self._settings.model_copy(
            update={
                "port": state.api_port,
                "dagster_port": state.dagster_port,
                "postgres_dsn": SecretStr(self._dsn()),
                "nats_url": SecretStr(state.nats_url or ""),
                "ray_address": state.ray_address,
            }
        )
        write_private(settings_file(self._dir), deployment.dump(settings_to_dict(self._settings)))
        write_private(serve_file(self._dir), serve_config(self._settings, settings_file(self._dir)))

    def _deploy(self) -> None:
        with self._progress.step("applications") as waiting_for:
            deployment.deploy(self._state, self._logs / "deploy.log", self._settings.ready_timeout_s, waiting_for)
        with self._progress.step("api") as waiting_for:
            deployment.wait_until_ready(self._state, self._settings.ready_timeout_s, waiting_for)

    def _launch_code_server(self) -> DagsterUi:
        """It imports for seconds, and nothing asks it before web server and daemon: let it do so while Ray starts."""
        home = write_home(self._settings)
        variables = {"DAGSTER_HOME": str(home), "DAGSTER_DISABLE_TELEMETRY": "1"}
        env = child_environment(variables | deployment.ray_variables(self._state), mark=self._dir)
        ui = DagsterUi(home, self._settings.host, self._state.dagster_port, self._logs, env, code_socket(self._dir))
        self._state.processes["dagster-code-server"] = ui.launch_code_server()
        save_state(self._state)
        return ui

    def _launch_dagster(self, ui: DagsterUi) -> None:
        with self._progress.step("dagster code server"):
            ui.wait_for_code(self._state.processes["dagster-code-server"])
        self._state.processes["dagster-webserver"] = ui.launch_web()
        save_state(self._state)
        self._state.processes["dagster-daemon"] = ui.launch_daemon()
        save_state(self._state)

    def _wait_for_dagster(self, ui: DagsterUi) -> None:
        parts = self._state.processes
        with self._progress.step("dagster"):
            ui.wait(parts["dagster-code-server"], parts["dagster-webserver"], parts["dagster-daemon"])

    def _dsn(self) -> str:
        if self._state.postgres_dsn is None:
            raise StackError("Postgres has no address yet")
        return self._state.postgres_dsn

    def _keep_previous_logs(self) -> None:
        """Logs of this start and of the one before; no more, so that they do not fill the disk."""
        previous = self._dir / "logs.previous"
        shutil.rmtree(previous, ignore_errors=True)
        if self._logs.exists():
            self._logs.rename(previous)
        self._logs.mkdir(parents=True)


def recovers(state: StackState, progress: Progress) -> bool:
    """True if every part lives and the API is ready, or becomes so by itself shortly (Ray restarts what fails)."""
    if state.phase != "ready" or state.dead():
        return False
    if deployment.not_ready(state) is None:
        return True
    try:
        with progress.step("the running stack") as waiting_for:
            deployment.wait_until_ready(state, _RECOVERY_S, waiting_for)
    except deployment.DeploymentError as error:
        progress.note(f"  the running stack does not recover and is started again: {error}")
        return False
    return True


def clear_remains(settings: Settings) -> int:
    """Before a start: end what an earlier, killed or half-dead stack left. Returns how many processes that were."""
    state_dir = settings.state_dir.resolve()
    state = load_state(state_dir)
    if state is None and not stack_processes(state_dir, None):
        return 0
    return tear_down(state_dir, state)


__all__ = ["Stack", "StackError", "clear_remains", "recovers", "running"]
