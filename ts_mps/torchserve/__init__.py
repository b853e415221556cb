"""TorchServe as it is: its flags, its configuration, its java command, its management API, its workers."""
