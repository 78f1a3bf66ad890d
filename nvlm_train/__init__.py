"""nvlm_train: train your own NVLM (D, X, H) on Megatron-Core, from a laptop CPU to a cluster of DGX nodes."""

__version__ = "0.1.0"
