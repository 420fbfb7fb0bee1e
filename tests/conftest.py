"""One thread for torch: small tensors are faster so, and results do not depend on the machine."""

import torch

torch.set_num_threads(1)
