"""What the machine has: GPUs by NVML, which of them the user chose, and how many MPS clients each one takes."""
