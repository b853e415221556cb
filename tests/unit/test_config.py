from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
import ts

from ts_mps.errors import PreflightError, TsMpsError
from ts_mps.torchserve import config, properties
from ts_mps.torchserve.arguments import StartArguments
from ts_mps.torchserve.variables import VARIABLES


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _load(content="", environ=None, **arguments):
    Path("user.properties").write_text(content)
    return config.load(StartArguments(ts_config="user.properties", **arguments), environ or {})


def _snapshot(time: str, content: str, folder="logs/config") -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / f"{time}-snapshot.cfg"
    path.write_text(content)
    return path


# Which file


def test_named_by_variable_beats_flag():
    Path("a").write_text("x=a")
    Path("b").write_text("x=b")
    chosen = config.load(StartArguments(ts_config="b"), {"TS_CONFIG_FILE": "a"})
    assert chosen.values == {"x": "a"}
    assert "TS_CONFIG_FILE" in chosen.source
    assert chosen.path == Path("a").absolute()


def test_empty_variable_means_no_file_at_all():
    Path("config.properties").write_text("x=1")
    _snapshot("20260101000000000", "x=2")
    chosen = config.load(StartArguments(ts_config="config.properties"), {"TS_CONFIG_FILE": ""})
    assert chosen.path is None
    assert chosen.values == {}
    assert "empty" in chosen.source


def test_flag_beats_snapshot():
    _snapshot("20260101000000000", "x=snapshot")
    assert _load("x=flag").values == {"x": "flag"}


def test_newest_snapshot_beats_config_properties():
    Path("config.properties").write_text("x=file")
    for time in ("20260101000000000", "20251231235959999", "20260101000000001", "20190101000000000"):
        _snapshot(time, f"x={time}")
    Path("logs/config/99990101000000000-folder").mkdir()
    chosen = config.load(StartArguments(), {})
    assert chosen.values == {"x": "20260101000000001"}
    assert chosen.snapshot == Path("logs/config/20260101000000001-snapshot.cfg").absolute()
    assert "--ncs" in chosen.source


def test_snapshots_are_looked_for_where_the_logs_are():
    _snapshot("20260101000000000", "x=elsewhere", "var/config")
    assert config.load(StartArguments(), {"LOG_LOCATION": "var"}).values == {"x": "elsewhere"}


def test_ncs_leaves_snapshots_out():
    Path("config.properties").write_text("x=file")
    _snapshot("20260101000000000", "x=snapshot")
    chosen = config.load(StartArguments(no_config_snapshots=True), {})
    assert chosen.values == {"x": "file"}
    assert chosen.snapshot is None


def test_stray_file_among_snapshots_is_named():
    _snapshot("20260101000000000", "x=1")
    Path("logs/config/notes.txt").touch()
    with pytest.raises(PreflightError, match=r"notes\.txt") as caught:
        config.load(StartArguments(), {})
    assert "--ncs" in caught.value.remedy


def test_no_file():
    chosen = config.load(StartArguments(), {})
    assert chosen.path is None
    assert chosen.source == "There is no configuration file."


@pytest.mark.parametrize("environ", [{}, {"TS_CONFIG_FILE": "missing"}])
def test_missing_file_is_torchserves_exit_code(environ):
    with pytest.raises(TsMpsError, match="missing") as caught:
        config.load(StartArguments(ts_config="missing"), environ)
    assert caught.value.exit_code == 1


def test_file_that_is_no_text_for_the_launcher():
    Path("user.properties").write_bytes(b"a=\xe9\n")
    with pytest.raises(TsMpsError, match=r"user\.properties") as caught:
        config.load(StartArguments(ts_config="user.properties"), {})
    assert caught.value.exit_code == 1


# Which values


def test_variables_in_values():
    chosen = _load("a=$$ONE$$/x/$$TWO$$\nb=$$\nc=$ONE", {"ONE": "1", "TWO": "2"})
    assert chosen.resolved == {"a": "1/x/2", "b": "$$", "c": "$ONE"}
    assert chosen.values["a"] == "$$ONE$$/x/$$TWO$$"


@pytest.mark.parametrize(
    ("environ", "says"), [({}, "not set"), ({"ONE": "pa$$"}, "misreads"), ({"ONE": "\\"}, "misreads")]
)
def test_variable_that_does_not_do(environ, says):
    with pytest.raises(PreflightError, match=says) as caught:
        _load("x=1\na=$$ONE$$\n", environ)
    assert "user.properties line 2: a" in caught.value.what
    assert "ONE" in caught.value.what


def test_flags_beat_the_file():
    chosen = _load(
        "load_models=x.mar\nworkflow_store=there\nmodel_store=here\n",
        model_store="given",
        models=("a.mar", "b=b.mar"),
        disable_token_auth=True,
        enable_model_api=True,
    )
    assert chosen.load_models == "a.mar,b=b.mar"
    assert chosen.model_store == Path("given")
    assert chosen.workflow_store == Path("there")
    assert not chosen.token_auth
    assert chosen.boolean("enable_model_api")
    assert chosen.values["load_models"] == "x.mar"


def test_workflow_store_is_the_model_store_by_default():
    assert _load("model_store=here").workflow_store == Path("here")


def test_model_store_is_what_the_launcher_reads():
    # Java would drop the backslash; the launcher keeps it and hands it on with -s.
    assert _load("model_store=he\\re").model_store == Path("he\\re")


def test_ts_variables_count_only_if_enabled():
    environ = {"TS_DEFAULT_WORKERS_PER_MODEL": "3", "TS_TOKEN_EXPIRATION_TIME_MIN": "5", "TS_MPS_MPS": "on"}
    assert _load("default_workers_per_model=2", environ).default_workers_per_model == 2
    chosen = _load("default_workers_per_model=2\nenable_envvars_config=True", environ)
    assert chosen.default_workers_per_model == 3
    assert chosen.resolved["token_expiration_min"] == "5"
    assert set(chosen.resolved) == {"default_workers_per_model", "enable_envvars_config", "token_expiration_min"}


def test_allowed_urls_by_variable_needs_a_second_key():
    environ = {"TS_ALLOWED_URLS": "disabled"}
    assert "allowed_urls" not in _load("enable_envvars_config=true", environ).resolved
    both = _load("enable_envvars_config=true\nuse_env_allowed_urls=TRUE", environ)
    assert both.resolved["allowed_urls"] == "disabled"


def _constants(name: str) -> dict[str, str]:
    """Static string constants of a class in TorchServe's jar (class file format: JVM specification, chapter 4)."""
    jar = Path(ts.__file__).parent / "frontend" / "model-server.jar"
    data = zipfile.ZipFile(jar).read(name)
    sizes = {7: 2, 8: 2, 16: 2, 19: 2, 20: 2, 15: 3, 3: 4, 4: 4, 9: 4, 10: 4, 11: 4, 12: 4, 17: 4, 18: 4, 5: 8, 6: 8}
    pool: dict[int, str | int] = {}
    index, at = 1, 10
    while index < struct.unpack_from(">H", data, 8)[0]:
        tag = data[at]
        (number,) = struct.unpack_from(">H", data, at + 1)
        if tag == 1:
            pool[index] = data[at + 3 : at + 3 + number].decode()
        elif tag == 8:
            pool[index] = number
        at += 3 + number if tag == 1 else 1 + sizes[tag]
        index += 2 if tag in (5, 6) else 1
    (interfaces,) = struct.unpack_from(">H", data, at + 6)
    at += 8 + 2 * interfaces
    (fields,) = struct.unpack_from(">H", data, at)
    at += 2
    found = {}
    for _ in range(fields):
        _, field, _, attributes = struct.unpack_from(">4H", data, at)
        at += 8
        for _ in range(attributes):
            attribute, length = struct.unpack_from(">HI", data, at)
            if pool[attribute] == "ConstantValue":
                value = pool.get(struct.unpack_from(">H", data, at + 6)[0])
                found[pool[field]] = pool.get(value) if isinstance(value, int) else value
            at += 6 + length
    return found


def test_variables_are_those_of_torchserves_jar():
    constants = _constants("org/pytorch/serve/util/ConfigManager.class")
    assert {name: key for name, key in constants.items() if name.startswith("TS_")} == dict(VARIABLES)


# Types


def test_defaults():
    chosen = config.load(StartArguments(), {})
    assert str(chosen.inference_address) == "http://127.0.0.1:8080"
    assert str(chosen.management_address) == "http://127.0.0.1:8081"
    assert str(chosen.metrics_address) == "http://127.0.0.1:8082"
    assert str(chosen.grpc_inference_address) == "127.0.0.1:7070"
    assert str(chosen.grpc_management_address) == "127.0.0.1:7071"
    assert chosen.token_auth
    assert chosen.metrics_api
    assert chosen.number_of_gpu is None
    assert chosen.default_workers_per_model == 0
    assert chosen.initial_worker_port == 9000
    assert chosen.load_models is None
    assert chosen.model_store is None
    assert chosen.models == {}
    assert chosen.model_snapshot is None
    assert (chosen.keystore, chosen.keystore_pass, chosen.keystore_type) == (None, "changeit", "PKCS12")
    assert config.check(chosen) == ()


def test_settings():
    chosen = _load(
        "inference_address=HTTPS://0.0.0.0\n"
        "management_address=unix:/run/m.sock\n"
        "metrics_address=https://host\n"
        "grpc_inference_address=0.0.0.0\n"
        "grpc_inference_port=17070\n"
        "enable_grpc_ssl=true\n"
        "enable_metrics_api=false\n"
        "number_of_gpu=+2\n"
        "debug=true\n"
        "default_workers_per_model=5\n"
        'models={"m":{"1.0":{"minWorkers":2}}}\n'
        "keystore=k.p12\nkeystore_pass=secret\ncertificate_file=c.pem\nprivate_key_file=k.pem\n"
    )
    assert str(chosen.inference_address) == "https://0.0.0.0:443"
    assert chosen.management_address.path == "/run/m.sock"
    assert str(chosen.management_address) == "unix:/run/m.sock"
    assert str(chosen.metrics_address) == "https://host:8445"
    assert (chosen.grpc_inference_address.host, chosen.grpc_inference_address.port) == ("0.0.0.0", 17070)
    assert chosen.grpc_inference_address.https
    assert not chosen.metrics_api
    assert chosen.number_of_gpu == 2
    assert chosen.default_workers_per_model == 1
    assert chosen.models == {"m": {"1.0": {"minWorkers": 2}}}
    assert chosen.keystore == Path("k.p12")
    assert (chosen.certificate_file, chosen.private_key_file) == (Path("c.pem"), Path("k.pem"))
    assert "secret" not in repr(chosen)


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("inference_address=8080", "inference_address"),
        ("inference_address=http://127.0.0.1:8080 ", "inference_address"),
        ("management_address=http://[::1]:8081", "management_address"),
        ("management_address=http://127.0.0.1:0", "management_address"),
        ("metrics_address=http://127.0.0.1:65535", "metrics_address"),
        ("grpc_inference_port=x", "grpc_inference_port"),
        ("grpc_management_port=-1", "grpc_management_port"),
        ("number_of_gpu=two", "number_of_gpu"),
        ("number_of_gpu=2147483648", "number_of_gpu"),
        ("number_of_gpu= ", "number_of_gpu"),
        ("default_workers_per_model=1.5", "default_workers_per_model"),
        ("initial_worker_port=9_000", "initial_worker_port"),
        ("models={", "models"),
        ("models=[]", "models"),
        ("model_snapshot=x", "model_snapshot"),
    ],
)
def test_what_torchserve_would_stumble_over(line, key):
    (error,) = config.check(_load(f"# first\n{line}\n"))
    assert error.exit_code == 3
    assert error.what.startswith(f"{Path('user.properties').absolute()} line 2: {key} ")


def test_every_finding_is_reported():
    found = config.check(_load("number_of_gpu=x\ninference_address=y\nmodels=z\n"))
    assert len(found) == 3


def test_value_from_a_variable_names_the_variable():
    (error,) = config.check(_load("enable_envvars_config=true", {"TS_NUMBER_OF_GPU": ""}))
    assert error.what.startswith("TS_NUMBER_OF_GPU: number_of_gpu")


# The effective file


def test_effective_keeps_every_key(tmp_path):
    chosen = _load("inference_address=http://127.0.0.1:1\nunknown=kept\na=$$X$$\nnumber_of_gpu=4\n", {"X": "x"})
    path = tmp_path / "effective"
    config.write_effective(path, chosen, {"number_of_gpu": "2", "metrics_mode": "prometheus"})
    assert dict(properties.read(path).values) == {
        "inference_address": "http://127.0.0.1:1",
        "unknown": "kept",
        "a": "$$X$$",
        "number_of_gpu": "2",
        "metrics_mode": "prometheus",
    }
    assert "user.properties" in path.read_text().splitlines()[0]


METRICS = ("-m", "collector", "--gpus", "GPU-1,GPU-2")


def test_default_overrides():
    ours = config.default_overrides(_load(), METRICS)
    assert ours["metrics_mode"] == "prometheus"
    assert Path(ours["metrics_config"]).is_file()
    assert ours["system_metrics_cmd"] == "-m collector --gpus GPU-1,GPU-2"


@pytest.mark.parametrize("key", ["metrics_mode", "metrics_config", "system_metrics_cmd"])
def test_what_the_user_set_is_not_overridden(key):
    assert key not in config.default_overrides(_load(f"{key}=mine"), METRICS)
    if key != "system_metrics_cmd":
        environ = {f"TS_{key.upper()}": "mine"}
        assert key not in config.default_overrides(_load("enable_envvars_config=true", environ), METRICS)
