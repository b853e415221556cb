"""The archive's model-config.yaml, validated: TorchServe itself ignores what it does not know."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, model_validator

from ts_mps.batching.errors import ConfigError

Positive = Annotated[StrictInt, Field(gt=0)]
NotNegative = Annotated[StrictInt, Field(ge=0)]

#: The top-level keys of model-config.yaml that TorchServe 0.12.0's frontend and its Python side read, with the type
#: that the frontend insists on; a wrong type is a mere warning in its log, after which it serves with the default.
_TORCHSERVE_KEYS: dict[str, type | None] = {
    "minWorkers": int,
    "maxWorkers": int,
    "batchSize": int,
    "maxBatchDelay": int,
    "responseTimeout": int,
    "startupTimeout": int,
    "deviceType": str,
    "deviceIds": list,
    "parallelType": str,
    "parallelLevel": int,
    "torchrun": dict,
    "maxRetryTimeoutInSec": int,
    "clientTimeoutInMills": int,
    "jobQueueSize": int,
    "useJobTicket": bool,
    "sequenceMaxIdleMSec": int,
    "sequenceTimeoutMSec": int,
    "maxSequenceJobQueueSize": int,
    "maxNumSequence": int,
    "continuousBatching": bool,
    "sequenceBatching": bool,
    "asyncCommunication": bool,
    "useVenv": bool,
    "pt2": None,
    "mps": None,
}


class Strict(BaseModel):
    """A section of model-config.yaml: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class BatchingOptions(Strict):
    """The section ``batching``.

    Args:
        dtype: What the model computes in: ``fp32``, ``tf32`` (float32 weights, TensorFloat-32 products on the GPU),
            ``fp16`` or ``bf16``.
        max_instances: Most instances in one run of the model.
        max_tokens: Most tokens in one run, padding included; no limit if null. Only for inputs with a length.
        max_bytes: Most bytes of input in one run, padding included; no limit if null.
        max_request_instances: Most instances in one request; more is answered with 413.
        lengths: The lengths in tokens to which instances are padded; the last one is the longest that is accepted.
        rows: The batch sizes that are captured or compiled; batches are padded up to the next one. Null: the powers of
            two up to max_instances. Without graphs and compilation batches run at their own size.
        cuda_graphs: Capture one CUDA graph for each shape at the start. Ignored on the CPU.
        compile: Run the model through torch.compile; a text is its mode (``default``, ``max-autotune-no-cudagraphs``).
        launch_cost: What starting one more run costs, in tokens of computing (in instances for inputs without a
            length): decides when it is better to pad than to split a batch.
        decode_threads: Threads that decode the requests of a batch side by side; 0: this worker's share of the cores,
            where the handler says that its decoding gains from it.
    """

    dtype: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32"
    max_instances: Positive = 32
    max_tokens: Positive | None = None
    max_bytes: Positive | None = None
    max_request_instances: Positive = 10_000
    lengths: tuple[Positive, ...] = (16, 32, 64, 128, 256, 512)
    rows: tuple[Positive, ...] | None = None
    cuda_graphs: StrictBool = True
    compile: StrictBool | Literal["default", "max-autotune-no-cudagraphs"] = False
    launch_cost: NotNegative = 512
    decode_threads: NotNegative = 0

    @model_validator(mode="after")
    def _consistent(self) -> BatchingOptions:
        if not self.lengths:
            raise ValueError("lengths must name at least one length")
        if self.rows is not None and (not self.rows or max(self.rows) > self.max_instances):
            raise ValueError(f"rows must name batch sizes from 1 to max_instances ({self.max_instances})")
        if self.max_tokens is not None and self.max_tokens < max(self.lengths):
            raise ValueError(f"max_tokens ({self.max_tokens}) must hold one instance of {max(self.lengths)} tokens")
        return self


OptionsT = TypeVar("OptionsT", bound=Strict)


def read_config(config: Mapping[str, Any] | None, handler_options: type[OptionsT]) -> tuple[BatchingOptions, OptionsT]:
    """Validate a whole model-config.yaml.

    Args:
        config: Its content, as TorchServe passes it in ``context.model_yaml_config``; None or empty if there is none.
        handler_options: What the section ``handler`` may hold.

    Raises:
        ConfigError: A key is unknown or has a wrong value; every such key is named.
    """
    config = {} if config is None else config
    if not isinstance(config, Mapping):
        raise ConfigError(f"model-config.yaml must hold keys and values, not a {type(config).__name__}.")
    problems = [*_top_level(config)]
    batching = _section(config, "batching", BatchingOptions, problems)
    handler = _section(config, "handler", handler_options, problems)
    if problems or batching is None or handler is None:
        raise ConfigError("model-config.yaml cannot be used: " + "; ".join(problems) + ".")
    return batching, handler


def _top_level(config: Mapping[str, Any]) -> list[str]:
    problems = []
    known = [*_TORCHSERVE_KEYS, "batching", "handler"]
    for key, value in config.items():
        if key not in known:
            problems.append(f"{key}: no such key{_meant(str(key), known)}")
            continue
        wanted = _TORCHSERVE_KEYS.get(key)
        if wanted is not None and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
            problems.append(f"{key}: must be of type {wanted.__name__}, got {value!r}")
    return problems


def _section(config: Mapping[str, Any], name: str, options: type[OptionsT], problems: list[str]) -> OptionsT | None:
    try:
        section = config.get(name)
        return options.model_validate({} if section is None else section)
    except ValidationError as error:
        for one in error.errors():
            place = ".".join([name, *(str(part) for part in one["loc"])])
            if one["type"] == "extra_forbidden":
                problems.append(f"{place}: no such key{_meant(str(one['loc'][-1]), list(options.model_fields))}")
            else:
                message = one["msg"].removeprefix("Value error, ")
                given = f", got {one['input']!r}" if one["loc"] else ""
                problems.append(f"{place}: {message[:1].lower()}{message[1:]}{given}")
        return None


def _meant(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    folded = [name for name in known if name.lower() == key.lower().replace("_", "").replace("-", "")]
    found = (close or folded)[:1]
    return f", did you mean {found[0]}?" if found else ""
