"""deploy/systemd passes systemd's own check; deploy/quadlet has only keys that podman documents."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from serve_app.settings import Settings
from tests.house.tree import ROOT

SYSTEMD = ROOT / "deploy" / "systemd"
QUADLET = ROOT / "deploy" / "quadlet"
UNITS = sorted(SYSTEMD.glob("*.service"))
QUADLETS = sorted(path for path in QUADLET.iterdir() if path.suffix != ".md")
TEMPLATE = SYSTEMD / "dagster-debate@.service"
TRACE_ID = "0123456789abcdef0123456789abcdef"
# Where the units look for programs, and what stands there on a machine that only checks them.
PLACES = {"/opt/aifactory": str(ROOT)}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The tables of podman-systemd.unit(5), podman 5.6. A key that came later would be refused by that version's generator.
CONTAINER_KEYS = _words(
    """AddCapability AddDevice AddHost Annotation AutoUpdate CgroupsMode ContainerName ContainersConfModule DNS DNSOption
    DNSSearch DropCapability Entrypoint Environment EnvironmentFile EnvironmentHost Exec ExposeHostPort GIDMap GlobalArgs Group
    GroupAdd HealthCmd HealthInterval HealthLogDestination HealthMaxLogCount HealthMaxLogSize HealthOnFailure HealthRetries
    HealthStartPeriod HealthStartupCmd HealthStartupInterval HealthStartupRetries HealthStartupSuccess HealthStartupTimeout
    HealthTimeout HostName Image IP IP6 Label LogDriver LogOpt Mask Memory Mount Network NetworkAlias NoNewPrivileges Notify
    PidsLimit Pod PodmanArgs PublishPort Pull ReadOnly ReadOnlyTmpfs ReloadCmd ReloadSignal Retry RetryDelay Rootfs RunInit
    SeccompProfile Secret SecurityLabelDisable SecurityLabelFileType SecurityLabelLevel SecurityLabelNested SecurityLabelType
    ShmSize StartWithPod StopSignal StopTimeout SubGIDMap SubUIDMap Sysctl Timezone Tmpfs UIDMap Ulimit Unmask User UserNS Volume
    WorkingDir"""
)
VOLUME_KEYS = _words(
    "ContainersConfModule Copy Device Driver GlobalArgs Group Image Label Options PodmanArgs Type User VolumeName"
)
NETWORK_KEYS = _words(
    """ContainersConfModule DisableDNS DNS Driver Gateway GlobalArgs InterfaceName Internal IPAMDriver IPRange IPv6 Label
    NetworkDeleteOnStop NetworkName Options PodmanArgs Subnet"""
)
OWN_SECTION = {
    ".container": ("Container", CONTAINER_KEYS),
    ".volume": ("Volume", VOLUME_KEYS),
    ".network": ("Network", NETWORK_KEYS),
}
# The generator refuses these under [Service]: the container's user is set with User= under [Container].
REFUSED_SERVICE_KEYS = frozenset({"User", "Group", "DynamicUser"})

Sections = dict[str, list[tuple[str, str]]]


def sections(text: str) -> Sections:
    """A unit file's keys and values, in order, by section."""
    found: Sections = {}
    for line in text.splitlines():
        if not line or line.startswith(("#", ";")):
            continue
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            current = found.setdefault(heading.group(1), [])
            continue
        key, equals, value = line.partition("=")
        assert equals, f"neither a section nor a key: {line}"
        current.append((key.strip(), value.strip()))
    return found


def verify(folder: Path, *units: Path) -> str:
    """What systemd has to say about units that stand in `folder`: nothing when they are right."""
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing: install the package systemd (scripts/test does so as root)"
    # The folder comes first, then systemd's own units; other units of this machine do not matter.
    done = subprocess.run(
        [program, "verify", "--man=no", *map(str, units)],
        env={"SYSTEMD_UNIT_PATH": f"{folder}:", "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0 or told, f"systemd-analyze ended with {done.returncode} and said nothing"
    return told.strip()


def checked_copy(path: Path, folder: Path) -> Path:
    """A copy whose programs are found: /opt/aifactory is this checkout, and PostgreSQL 18 need not be installed."""
    text = path.read_text()
    for place, here in PLACES.items():
        text = text.replace(place, here)
    copy = folder / path.name
    copy.write_text(text.replace("/usr/lib/postgresql/18/bin/postgres", "/bin/true"))
    return copy


def test_plain_units_pass_systemds_check(tmp_path: Path) -> None:
    copies = [checked_copy(path, tmp_path) for path in UNITS]
    instance = tmp_path / TEMPLATE.name.replace("@", f"@{TRACE_ID}")
    shutil.copy(tmp_path / TEMPLATE.name, instance)
    assert verify(tmp_path, *(copy for copy in copies if "@" not in copy.name), instance) == ""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Restart=on-failure", "Restart=on-falure"),
        ("CollectMode=", "ColectMode="),
        ("ExecStart=/bin/sh", "ExecStart=/nowhere/sh"),
        ("Type=oneshot\n", "Type=oneshot\nRestart=always\n"),
    ],
)
def test_the_check_finds_mistakes(tmp_path: Path, right: str, wrong: str) -> None:
    text = checked_copy(TEMPLATE, tmp_path).read_text()
    assert right in text
    mistaken = tmp_path / TEMPLATE.name.replace("@", f"@{TRACE_ID}")
    mistaken.write_text(
        text.replace("Restart=on-failure\n", "").replace(right, wrong) if "always" in wrong else text.replace(right, wrong)
    )
    assert verify(tmp_path, mistaken) != ""


@pytest.mark.parametrize("path", QUADLETS, ids=lambda path: str(path.name))
def test_quadlet_files_have_documented_keys_only(path: Path, tmp_path: Path) -> None:
    found = sections(path.read_text())
    own, documented = OWN_SECTION[path.suffix]
    assert [key for key, _ in found[own] if key not in documented] == []
    assert set(found) <= {"Unit", "Service", "Install", own}
    assert not {key for key, _ in found.get("Service", [])} & REFUSED_SERVICE_KEYS
    # All other sections go to systemd as they are, so systemd can judge them; names of Quadlet files become services.
    generated = [
        f"[Unit]\n{_lines(found.get('Unit', []))}",
        f"[Service]\nExecStart=/bin/true\n{_lines(found.get('Service', []))}",
    ]
    generated.append(f"[Install]\n{_lines(found.get('Install', []))}")
    for other in QUADLETS:
        service = other.stem + ("" if other.suffix == ".container" else f"-{other.suffix[1:]}") + ".service"
        generated = [text.replace(other.name, service) for text in generated]
        (tmp_path / service).write_text("[Service]\nExecStart=/bin/true\n")
    assert not re.search(r"\.(container|volume|network)\b", "\n".join(generated)), "it names a Quadlet file that is not there"
    unit = tmp_path / f"{path.stem.replace('@', '@' + TRACE_ID)}.service"
    unit.write_text("\n".join(generated))
    assert verify(tmp_path, unit) == ""


@pytest.mark.parametrize("path", [path for path in QUADLETS if path.suffix == ".container"], ids=lambda path: str(path.name))
def test_quadlet_containers_name_an_image_and_what_is_there(path: Path) -> None:
    keys = sections(path.read_text())["Container"]
    [image] = [value for key, value in keys if key == "Image"]
    assert "." in image.partition("/")[0], "AutoUpdate=registry needs the name with its registry"
    names = {other.name for other in QUADLETS}
    for key, value in keys:
        if key == "Volume" and (source := value.split(":")[0]).endswith(".volume"):
            assert source in names
        if key == "Network" and value.endswith(".network"):
            assert value in names


def test_each_plain_unit_has_its_container() -> None:
    plain = {path.stem for path in UNITS} - {"aifactory-ray-worker"}  # a further machine joins as a plain unit
    assert {path.stem for path in QUADLETS if path.suffix == ".container"} == plain


@pytest.mark.parametrize("path", [TEMPLATE, QUADLET / "dagster-debate@.container"], ids=lambda path: str(path.name))
def test_the_one_shot_template_does_what_the_worker_counts_on(path: Path) -> None:
    found = sections(path.read_text())
    unit, service = dict(found["Unit"]), dict(found["Service"])
    assert "nats." in unit["After"]
    assert unit["CollectMode"] == "inactive-or-failed", "a failed run must leave no unit behind"
    assert (service["Type"], service["Restart"]) == ("oneshot", "on-failure")
    assert int(unit["StartLimitBurst"]) > 0
    assert "TRACE_ID=%i" in path.read_text()
    assert "dagster_project.entrypoints.run_debate" in path.read_text()
    assert "Install" not in found, "instances are started by name, never enabled"


def test_the_example_environment_has_known_settings() -> None:
    lines = [line for line in (SYSTEMD / "aifactory.env").read_text().splitlines() if line and not line.startswith("#")]
    names = [line.partition("=")[0] for line in lines]
    for name in names:
        if name.startswith("AIFACTORY_"):
            assert name.removeprefix("AIFACTORY_").lower() in Settings.model_fields, name
    assert not [line for line in lines if line.partition("=")[2][:1] in {"'", '"'}], "podman takes quotes as part of the value"
    used = set(re.findall(r"\$([A-Z_]{4,})", "".join(path.read_text() for path in [*UNITS, SYSTEMD / "nats.conf"])))
    assert used - {"MAINPID", "NATS_STORE"} <= set(names)


def test_the_page_names_every_unit() -> None:
    page = (ROOT / "docs" / "systemd.md").read_text()
    for path in [*UNITS, *QUADLETS]:
        assert f"`{path.name}`" in page, path.name
    assert "enable-linger" in page


def _lines(keys: list[tuple[str, str]]) -> str:
    return "".join(f"{key}={value}\n" for key, value in keys)


def test_no_unit_keeps_its_data_in_the_folder_of_another() -> None:
    """`aifactory down --purge` removes what is in its state folder: a database must not be there."""
    folders = [value for unit in UNITS for key, value in sections(unit.read_text())["Service"] if key == "StateDirectory"]
    assert len(folders) == 3
    assert [(a, b) for a in folders for b in folders if a != b and f"{b}/".startswith(f"{a}/")] == []
