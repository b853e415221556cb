"""The TS_* variables that TorchServe folds into its configuration under ``enable_envvars_config=true``."""

from __future__ import annotations

from collections.abc import Mapping

_KEYS = """
allowed_urls async_logging blacklist_env_vars certificate_file cors_allowed_headers cors_allowed_methods
cors_allowed_origin cpp_log_config cpu_launcher_args cpu_launcher_enable debug decode_input_request
default_response_timeout default_service_handler default_startup_timeout default_workers_per_model
disable_system_metrics disable_token_authorization enable_grpc_ssl enable_metrics_api enable_model_api
grpc_inference_address grpc_inference_max_connection_age_grace_ms grpc_inference_max_connection_age_ms
grpc_inference_port grpc_management_address grpc_management_max_connection_age_grace_ms
grpc_management_max_connection_age_ms grpc_management_port inference_address initial_distribution_port
initial_worker_port install_py_dep_per_model ipex_enable ipex_gpu_enable job_queue_size keystore keystore_pass
keystore_type limit_max_image_pixels load_models management_address max_request_size max_response_size
metrics_address metrics_config metrics_mode model_metrics_auto_detect model_server_home model_store
netty_client_threads number_of_gpu number_of_netty_threads prefer_direct_buffer private_key_file service_envelope
unregister_model_timeout workflow_store
"""

#: Variable -> key: the constants of TorchServe 0.12.0's ConfigManager whose names begin with TS_. A variable is
#: called like its constant, which is not always like its key.
VARIABLES: Mapping[str, str] = {
    **{f"TS_{key.upper()}": key for key in _KEYS.split()},
    "TS_HEADER_KEY_SEQUENCE_END": "ts_header_key_sequence_end",
    "TS_HEADER_KEY_SEQUENCE_ID": "ts_header_key_sequence_id",
    "TS_HEADER_KEY_SEQUENCE_START": "ts_header_key_sequence_start",
    "TS_OPEN_INFERENCE_PROTOCOL": "ts_open_inference_protocol",
    "TS_TOKEN_EXPIRATION_TIME_MIN": "token_expiration_min",
}


def folded_in(values: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variable -> key, for each variable that TorchServe would take over into ``values`` (file and flags).

    TS_ALLOWED_URLS needs ``use_env_allowed_urls=true`` as well. A variable that is set but empty counts.
    """
    if values.get("enable_envvars_config", "").lower() != "true":
        return {}
    allowed = values.get("use_env_allowed_urls", "").lower() == "true"
    return {
        variable: key
        for variable, key in VARIABLES.items()
        if variable in environ and (allowed or variable != "TS_ALLOWED_URLS")
    }
