"""model-config.yaml: whatever TorchServe would ignore is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ts_mps.batching import BatchingOptions, ConfigError, Strict
from ts_mps.batching.options import _TORCHSERVE_KEYS, read_config


class Inner(Strict):
    width: int = 1


class Options(Strict):
    labels: tuple[str, ...] = ()
    inner: Inner = Inner()


def refused(config: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(config, Options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("config", [None, {}, {"batching": None}, {"handler": None}, {"batching": {}, "handler": {}}])
def test_defaults(config: dict | None) -> None:
    assert read_config(config, Options) == (BatchingOptions(), Options())


def test_everything_set() -> None:
    config = {
        "minWorkers": 1,
        "maxWorkers": 2,
        "batchSize": 32,
        "maxBatchDelay": 5,
        "responseTimeout": 60,
        "deviceType": "gpu",
        "deviceIds": [0, 1],
        "useJobTicket": True,
        "torchrun": {"nproc-per-node": 1},
        "mps": {"anything": 1},
        "batching": {
            "dtype": "bf16",
            "max_instances": 64,
            "max_tokens": 4096,
            "max_bytes": 10**6,
            "max_request_instances": 5,
            "lengths": [8, 16],
            "rows": [1, 64],
            "cuda_graphs": False,
            "compile": "default",
            "launch_cost": 0,
            "decode_threads": 2,
        },
        "handler": {"labels": ["a"], "inner": {"width": 3}},
    }
    batching, handler = read_config(config, Options)
    assert batching.lengths == (8, 16) and batching.rows == (1, 64) and batching.compile == "default"
    assert handler.labels == ("a",) and handler.inner.width == 3
    with pytest.raises(Exception, match="frozen"):
        batching.max_instances = 1  # type: ignore[misc]


@pytest.mark.parametrize("config", [[], [1], "x", 0, 1, False, True, 1.5])
def test_not_a_mapping(config: object) -> None:
    assert type(config).__name__ in refused(config)


@pytest.mark.parametrize("section", ["batching", "handler"])
@pytest.mark.parametrize("value", [[], [1], "", "x", 0, 3, False, True])
def test_a_section_that_is_no_mapping(section: str, value: object) -> None:
    assert f"{section}: " in refused({section: value})


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"batchsize": 1}, ("batchsize: no such key, did you mean batchSize?",)),
        ({"batch_size": 1}, ("batch_size: no such key, did you mean batchSize?",)),
        ({"max-batch-delay": 1}, ("did you mean maxBatchDelay?",)),
        ({"batchings": {}}, ("did you mean batching?",)),
        ({"handlers": {}}, ("did you mean handler?",)),
        ({"zzzzzz": 1}, ("zzzzzz: no such key.",)),
        ({1: 2}, ("1: no such key",)),
        ({None: 2}, ("None: no such key",)),
        ({"batching": {"maxInstances": 1}}, ("batching.maxInstances: no such key, did you mean max_instances?",)),
        ({"batching": {"length": [1]}}, ("batching.length: no such key, did you mean lengths?",)),
        ({"batching": {1: 1}}, ("batching.1: ",)),
        ({"handler": {"label": ["a"]}}, ("handler.label: no such key, did you mean labels?",)),
        ({"handler": {"inner": {"widht": 1}}}, ("handler.inner.widht: no such key",)),
        ({"handler": {"inner": {"width": "x"}}}, ("handler.inner.width: ", "'x'")),
        ({"batching": {"max_instances": 0}}, ("batching.max_instances: ", "greater than 0", "got 0")),
        ({"batching": {"max_instances": "32"}}, ("batching.max_instances: ", "got '32'")),
        ({"batching": {"max_instances": 32.0}}, ("batching.max_instances: ",)),
        ({"batching": {"max_instances": True}}, ("batching.max_instances: ",)),
        ({"batching": {"max_instances": None}}, ("batching.max_instances: ",)),
        ({"batching": {"max_tokens": -1}}, ("batching.max_tokens: ",)),
        ({"batching": {"dtype": "int8"}}, ("batching.dtype: ", "'bf16'", "got 'int8'")),
        ({"batching": {"lengths": []}}, ("lengths must name at least one length",)),
        ({"batching": {"lengths": 16}}, ("batching.lengths: ",)),
        ({"batching": {"lengths": [16, 0]}}, ("batching.lengths.1: ",)),
        ({"batching": {"lengths": ["16"]}}, ("batching.lengths.0: ",)),
        ({"batching": {"rows": []}}, ("rows must name batch sizes",)),
        ({"batching": {"rows": [33]}}, ("rows must name batch sizes from 1 to max_instances (32)",)),
        ({"batching": {"max_tokens": 511}}, ("max_tokens (511) must hold one instance of 512 tokens",)),
        ({"batching": {"cuda_graphs": 1}}, ("batching.cuda_graphs: ",)),
        ({"batching": {"cuda_graphs": "yes"}}, ("batching.cuda_graphs: ",)),
        ({"batching": {"compile": "fast"}}, ("batching.compile",)),
        ({"batching": {"launch_cost": -1}}, ("batching.launch_cost: ",)),
        ({"batching": {"decode_threads": -1}}, ("batching.decode_threads: ",)),
        (
            {"batchsize": 1, "batching": {"a": 1, "dtype": 3}, "handler": {"b": 1}},
            ("batchsize: ", "batching.a: ", "batching.dtype: ", "handler.b: "),
        ),
    ],
)
def test_wrong_keys_and_values_are_named(config: dict, names: tuple[str, ...]) -> None:
    said = refused(config)
    for name in names:
        assert name in said


WRONG = {int: ["1", 1.0, True, None, [1]], str: [1, True, None, ["x"]], list: [1, "0", None, {}], dict: [1, "x", []]}
WRONG[bool] = [1, 0, "true", None]


@pytest.mark.parametrize("key", [key for key, kind in _TORCHSERVE_KEYS.items() if kind])
def test_wrong_types_of_torchserve_keys(key: str) -> None:
    kind = _TORCHSERVE_KEYS[key]
    assert kind is not None
    for value in WRONG[kind]:
        assert f"{key}: must be of type {kind.__name__}, got {value!r}" in refused({key: value})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(list(BatchingOptions.model_fields)), VALUES, max_size=4))
def test_any_section_is_read_or_named(section: dict) -> None:
    try:
        batching, _ = read_config({"batching": section}, Options)
    except ConfigError as error:
        assert "batching" in str(error)
    else:
        for name, value in section.items():
            got = getattr(batching, name)
            assert (list(got) if isinstance(got, tuple) else got) == value
