"""NVIDIA's Multi-Process Service: the control protocol, and the life of one control daemon per GPU."""
