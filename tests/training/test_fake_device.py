"""The pretended accelerator computes as the CPU does, refuses what CUDA refuses, and counts what CUDA would do."""

import pytest
import torch
from fake_device import PRETENDS, install, watch

if not PRETENDS:
    pytest.skip("beside a GPU, or by an older torch, no device is pretended", allow_module_level=True)
DEVICE = install()
X, ONE = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor(1.0)
T, SINGLE = X.to(DEVICE), X.to(DEVICE, torch.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.linalg.cholesky(x[1:, ::2].T @ x[1:, ::2]),
        lambda x: x.to_sparse() @ x.T.contiguous(),
        lambda x: torch._foreach_mul([x, x], [2.0, 3.0])[1],
        lambda x: torch.vmap(torch.func.grad(torch.sum))(x),
        lambda x: torch.where(x > 0, x, 0.0).index_add_(0, (x[:, 0] < 9).nonzero()[:1, 0], x[:1]),
    ],
    ids=["cholesky of a view", "sparse", "foreach", "vmap of grad", "where, index_add"],
)
def test_it_computes_what_the_cpu_does(function):
    torch.testing.assert_close(function(T), function(X).to(DEVICE), rtol=0, atol=0)


def test_a_backward_pass_runs_on_it():
    leaf = T.clone().requires_grad_()
    (leaf.square().sum() * 0.5).backward()
    assert leaf.grad.device == DEVICE
    assert torch.equal(leaf.grad.cpu(), X)


@pytest.mark.parametrize(
    "refused", [lambda: T + X, lambda: T.clamp(min=ONE), lambda: X.clone().add_(T)], ids=["add", "clamp", "add_"]
)
def test_two_devices_do_not_mix(refused):
    with pytest.raises(RuntimeError, match="same device"):
        refused()


@pytest.mark.parametrize(
    ("launches", "waits", "run"),
    [
        (2, 1, lambda: (T.t()[0] * 2.0).sum().item()),
        (2, 2, lambda: T[T > 0].cpu()),
        (1, 0, lambda: T * ONE),
        (0, 1, lambda: ONE.to(DEVICE)),
        (2, 1, lambda: torch.where(T > 0, T, ONE)),
        (1, 0, lambda: torch._foreach_mul([T, T], 2.0)),
        (1, 0, lambda: torch._foreach_mul([T, T], T[0, 0])),
        (2, 0, lambda: torch._foreach_mul([T, T], SINGLE[0, 0])),
        (1, 0, lambda: torch._foreach_copy_([SINGLE, SINGLE], [T, T])),
        (2, 0, lambda: torch._foreach_mul([T, T], [T, T[0]])),
    ],
    ids=[
        "item",
        "mask",
        "number of the CPU",
        "copy",
        "where",
        "foreach",
        "by one tensor for all",
        "by one of another dtype",
        "copy of a list",
        "foreach of lists that differ in shape",
    ],
)
def test_launches_and_waits_are_counted(launches, waits, run):
    with watch() as seen:
        run()
    assert (seen.launches, seen.waits) == (launches, waits)


def test_a_wait_is_an_error_at_its_line_where_none_is_allowed():
    with watch(allow_waits=False), pytest.raises(RuntimeError, match="waits"):
        T.sum().item()
