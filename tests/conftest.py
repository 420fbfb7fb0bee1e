"""One thread for torch, which is faster on small tensors and the same on every machine; no compiler for skglm."""

import os

import torch

os.environ["NUMBA_DISABLE_JIT"] = "1"  # read once, at import: to compile a class of skglm takes a quarter of a minute
torch.set_num_threads(1)
