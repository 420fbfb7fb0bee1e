"""`compact`: the oracle is always the model itself, with its zeros."""

from __future__ import annotations

import copy
import io
import itertools
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_leaves

from torchreg import compact
from torchreg.training.compaction import compact as compaction
from torchreg.training.compaction import modules, removal

F64 = torch.float64
few = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # to shrink an example takes minutes
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


def zero(w, index, dim=0):
    with torch.no_grad():
        w.index_fill_(dim, torch.as_tensor(index, dtype=torch.long), 0.0)


def moved(model, seed=0):
    """Biases, norms and their statistics that are not what they start as."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if t.is_floating_point() and t.dim() == 1:
                t.add_(torch.rand(t.shape, generator=generator, dtype=F64).to(t) * (1.0 if "var" in name else 0.5))
    return model


def outputs(model, given):
    """All that a model returns."""
    return tree_leaves(model(*(given if isinstance(given, tuple) else (given,))))


def disturbed(given):
    if isinstance(given, tuple):
        return tuple(disturbed(x) for x in given)
    return torch.randn_like(given) * 2 if given.is_floating_point() else given.roll(1, 0)


def check(model, given, *, train=None):
    """Compact; same outputs to 1e-12 in float64 and 1e-6 in float32, and the model is as it was."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    smaller, report = compact(model, given, repeats=0)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert smaller is not model
    assert not {id(p) for p in model.parameters()} & {id(p) for p in smaller.parameters()}
    assert report.parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (model, smaller))
    assert train is None or report.exact_in_training is train
    same(model, smaller, given, 1e-12 if next(model.parameters()).dtype is F64 else 1e-6)
    return smaller, report


def same(model, smaller, given, tolerance):
    model, smaller = (modules.copied(m).eval() for m in (model, smaller))
    with torch.no_grad():
        for x in (given, disturbed(given), disturbed(given)):
            for a, b in zip(outputs(model, x), outputs(smaller, x), strict=True):
                assert a.shape == b.shape
                assert float((a - b).abs().max()) <= tolerance * float(a.abs().max())


def width(report, name):
    return next(c.after for c in report.layers if c.name == name)


def zeros_left(report, name):
    return next(c.left for c in report.layers if c.name == name)


ACTIVATIONS = [nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Sigmoid, nn.Softplus, lambda: nn.Dropout(0.3), nn.Identity]


@few
@given(st.data())
def test_perceptrons_keep_exactly_the_units_that_count(data):
    sizes = data.draw(st.lists(st.integers(2, 7), min_size=3, max_size=5))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    linears = [nn.Linear(a, b, bias=data.draw(st.booleans())) for a, b in itertools.pairwise(sizes)]
    alive = []
    for k, layer in enumerate(linears[:-1]):
        dead = data.draw(st.sets(st.integers(0, sizes[k + 1] - 1), max_size=sizes[k + 1] - 1))
        unread = data.draw(st.sets(st.integers(0, sizes[k + 1] - 1), max_size=1)) - {min(dead, default=-1)}
        zero(layer.weight, sorted(dead))
        zero(linears[k + 1].weight, sorted(unread), dim=1)
        alive.append(set(range(sizes[k + 1])) - dead - unread)
    layers = [part for layer in linears for part in (layer, data.draw(st.sampled_from(ACTIVATIONS))())]
    model = moved(nn.Sequential(*layers[:-1])).double()
    smaller, _ = check(model, torch.randn(3, sizes[0], dtype=F64))
    found = [m.out_features for m in smaller if isinstance(m, nn.Linear)]
    assert found[-1] == sizes[-1]
    # a layer keeps one unit at least; it keeps fewer than are alive where they read only each other
    assert all(n <= max(len(kept), 1) for n, kept in zip(found, alive, strict=False))
    if len(alive) == 1:
        assert found[0] == max(len(alive[0]), 1)


@pytest.mark.parametrize("dead", [0, 3, 11, 16])
def test_k_zero_rows_leave_n_minus_k_units(dead):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4))
    zero(model[0].weight, range(dead))
    smaller, report = check(model, torch.randn(2, 5), train=True)
    assert smaller[0].out_features == smaller[2].in_features == max(16 - dead, 1)
    flops = [2 * 2 * n * (5 + 4) for n in (16, max(16 - dead, 1))]
    assert report.flops == tuple(flops)


class Net(nn.Module):
    """Residual, concatenation, depthwise and grouped filters, pooling, flatten."""

    def __init__(self, groups=4, norm=nn.BatchNorm2d, pad=1, c=8):
        super().__init__()
        self.stem, self.n0 = nn.Conv2d(3, c, 3, padding=pad, bias=False), norm(c)
        self.c1, self.n1 = nn.Conv2d(c, c, 3, padding=pad, padding_mode="replicate"), norm(c)
        self.c2, self.n2 = nn.Conv2d(c, c, 1), norm(c)
        self.depthwise = nn.Conv2d(c, c, 3, groups=c, padding=pad)
        self.grouped = nn.Conv2d(2 * c, 8, 3, groups=groups)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x):
        x = functional.relu(self.n0(self.stem(x)))
        y = self.n2(self.c2(functional.gelu(self.n1(self.c1(x)))))
        x = functional.relu(x[:, :, : y.shape[2], : y.shape[3]] + y)
        x = torch.cat([functional.max_pool2d(x, 2), functional.avg_pool2d(self.depthwise(x), 2)], 1)
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(self.grouped(x), 2), 1))


@few
@given(st.integers(0, 1000))
def test_convolutional_nets_with_random_dead_filters(seed):
    torch.manual_seed(seed)
    model = moved(Net(), seed)
    for layer in (model.stem, model.c1, model.c2, model.depthwise, model.grouped):
        dead = torch.randperm(8)[: int(torch.randint(0, 7, ()))]
        zero(layer.weight, dead)
        if layer.bias is not None and seed % 2:
            zero(layer.bias, dead)
    for norm in (model.n0, model.n1, model.n2):
        dead = torch.randperm(8)[: int(torch.randint(0, 7, ()))]
        zero(norm.weight, dead)
        if seed % 3:
            zero(norm.bias, dead)
    check(model.double().eval(), torch.randn(2, 3, 14, 14, dtype=F64))


def test_a_residual_unit_goes_only_where_all_summands_are_dead():
    torch.manual_seed(0)
    model = Net(groups=1)
    zero(model.stem.weight, [0, 1, 2])
    zero(model.c2.weight, [1, 2, 3])
    zero(model.c2.bias, [1, 2, 3])
    smaller, report = check(model, torch.randn(2, 3, 14, 14))
    assert smaller.stem.out_channels == smaller.c2.out_channels == smaller.depthwise.groups == 6
    assert (smaller.c1.in_channels, smaller.c1.out_channels) == (6, 8)
    assert smaller.n0.num_features == smaller.n2.num_features == 6
    assert smaller.grouped.in_channels == 12
    assert "1 zero row: is read by" in zeros_left(report, "stem.weight")


def test_a_residual_net_as_published():
    class Basic(nn.Module):
        def __init__(self, a, b, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
            self.conv2, self.bn2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
            self.relu = nn.ReLU(inplace=True)
            self.down = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b)) if a != b else None

        def forward(self, x):
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(y + (x if self.down is None else self.down(x)))

    torch.manual_seed(0)
    body = [Basic(8, 8, 1), Basic(8, 16, 2), Basic(16, 16, 1)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(3, 2, 1), *body,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7),
    )  # fmt: skip
    for block in body:
        zero(block.conv1.weight, range(5))
    for layer in (body[1].conv2, body[1].down[0], body[2].conv2):
        zero(layer.weight, [0, 9])
    smaller, _ = check(model, torch.randn(2, 3, 33, 33), train=True)
    assert [block.conv1.out_channels for block in smaller[4:7]] == [3, 11, 11]
    assert smaller[-1].in_features == 14


def test_constants_at_a_zero_padded_border_stay_and_the_report_says_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1))
    zero(model[0].weight, [0, 1, 2])
    with torch.no_grad():
        model[0].bias[:3] = torch.tensor([0.5, -0.5, 0.0])
    smaller, report = check(model, torch.randn(2, 2, 7, 7))
    assert smaller[0].out_channels == 4  # relu(-0.5) and 0 are zeros; 0.5 is not
    assert "padding" in repr(report)
    model[2].padding_mode, model[2]._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]
    assert check(model, torch.randn(2, 2, 7, 7))[0][0].out_channels == 3


class Attention(nn.Module):
    """Attention as it is written by hand, in the ways that are common."""

    def __init__(self, cut, d=24, heads=4, fused=True):
        super().__init__()
        self.cut, self.n_heads, self.width, self.d = cut, heads, d // heads, d
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        b, t = x.shape[:2]
        y = self.qkv(self.norm1(x))
        if self.cut == "view":
            q, k, v = y.view(b, t, 3, self.n_heads, self.width).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = {
                "chunk": lambda: y.chunk(3, -1),
                "split": lambda: y.split(self.d, -1),
                "slices": lambda: [y[..., k * self.d : (k + 1) * self.d] for k in range(3)],
                "numbers": lambda: y.chunk(3, -1),
                "scores": lambda: y.chunk(3, -1),
            }[self.cut]()
            n = 4 if self.cut == "numbers" else self.n_heads
            q, k, v = (part.view(b, t, n, -1).transpose(1, 2) for part in (q, k, v))
        if self.cut == "scores":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / self.width**0.5
            z = torch.einsum("bhqk,bhkd->bhqd", functional.dropout(scores.softmax(-1), 0.1, self.training), v)
        else:
            z = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(b, t, -1))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


@pytest.mark.parametrize("cut", ["view", "chunk", "split", "slices", "numbers", "scores"])
def test_heads_and_neurons_of_a_transformer_block(cut):
    torch.manual_seed(1)
    model = nn.Sequential(Attention(cut), nn.LayerNorm(24), nn.Linear(24, 3))
    block = model[0]
    moved(model)
    zero(block.qkv.weight, range(2 * 24 + 6, 2 * 24 + 12))  # values of head 1, not their biases
    zero(block.out.weight, range(18, 24), dim=1)  # nobody reads head 3
    zero(block.up.weight, range(10, 40))
    smaller, report = check(model, torch.randn(2, 5, 24), train=None if cut == "scores" else True)
    assert width(report, "0.qkv.weight") == (36, 24)
    assert width(report, "0.out.weight") == (24, 12)
    assert width(report, "0.up.weight") == (18, 24)
    assert report.traced is (cut == "numbers")
    with torch.no_grad():  # other batch sizes and lengths than the example's
        x = torch.randn(3, 9, 24)
        torch.testing.assert_close(smaller.eval()(x), model.eval()(x), rtol=0, atol=1e-5)


def test_a_layer_norm_keeps_its_units_and_the_report_says_why():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    zero(model[0].weight, [0, 1])
    smaller, report = check(model, torch.randn(3, 4))
    assert smaller[0].out_features == 6
    assert "mean and variance of '1'" in report.layers[0].left


def test_an_rms_norm_loses_units_that_are_constant():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6, eps=0.01), nn.Linear(6, 2))
    zero(model[0].weight, [0, 1, 2])
    with torch.no_grad():
        model[0].bias[:3] = torch.tensor([0.0, 0.0, 0.7])
        model[1].weight[:3] = torch.tensor([1.0, 2.0, 0.0])
    smaller, _ = check(model, torch.randn(3, 4))
    assert smaller[0].out_features == 3  # the third adds to the mean square, and nothing else


def test_embeddings_gates_and_tied_heads():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.places = nn.Embedding(12, 8), nn.Parameter(torch.randn(20, 8))
            self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((8, 10), (8, 10), (10, 8)))
            self.head = nn.Linear(8, 12, bias=False)
            self.head.weight = self.table.weight

        def forward(self, i):
            x = self.table(i) + self.places[: i.shape[1]]
            return self.head(x + self.down(functional.silu(self.gate(x)) * self.up(x)))

    torch.manual_seed(0)
    model = Gated()
    zero(model.table.weight, [0, 1], dim=1)
    zero(model.places, [0, 1], dim=1)
    zero(model.down.weight, [0, 1])
    zero(model.gate.weight, [0, 1, 2])
    zero(model.up.weight, [2, 3])
    smaller, _ = check(model, torch.randint(0, 12, (2, 5)), train=True)
    assert smaller.head.weight is smaller.table.weight
    assert smaller.table.embedding_dim == 6
    assert smaller.places.shape == (20, 6)  # longer inputs than the example keep their places
    assert smaller.gate.out_features == smaller.down.in_features == 6


def test_units_that_read_only_each_other_go():
    torch.manual_seed(0)

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b, self.last = (nn.Linear(6, 6, bias=False) for _ in range(4))

        def forward(self, x):
            x = self.first(x)
            return self.last(x + self.b(torch.tanh(self.a(x))))

    model = Loop()
    zero(model.last.weight, [0], dim=1)  # unit 0 of the sum is read by a alone
    zero(model.a.weight, range(1, 6), dim=0)
    with torch.no_grad():
        model.a.weight[1:, 1:] = torch.randn(5, 5)
        model.a.weight[0, 1:] = 0.0
        model.b.weight[1:, 0] = 0.0  # what unit 0 of a hears, it tells unit 0 alone
    smaller, _ = check(model, torch.randn(2, 6))
    assert smaller.first.out_features == smaller.a.out_features == 5


def masked(model):
    prune.ln_structured(model[0], "weight", 0.5, 2, 0)
    prune.ln_structured(model[2], "weight", 0.25, 2, 0)


def normed(model):
    parametrizations.weight_norm(model[0])
    zero(model[0].parametrizations.weight.original0, [0, 1, 2, 3])


def frozen(model):
    zero(model[0].weight, [0, 1, 2, 3])
    model[0].requires_grad_(False)
    model[2].bias = None


@pytest.mark.parametrize("change", [masked, normed, frozen])
def test_computed_and_frozen_weights(change):
    torch.manual_seed(0)
    model = moved(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    change(model)
    smaller, _ = compact(model, torch.randn(3, 6))
    same(model, smaller, torch.randn(3, 6), 1e-6)
    assert smaller[0].out_features == smaller[2].in_features == 4
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    assert {n: p.requires_grad for n, p in smaller.named_parameters() if n in wanted} == wanted
    if change is masked:
        assert smaller[0].weight_mask.shape == (4, 6)
        assert prune.is_pruned(smaller)
    if change is frozen:
        assert smaller[2].bias is not None


class Lengths(nn.Module):
    """A weight whose rows or columns have given lengths; what is computed of the input is a part of it, or nothing."""

    def __init__(self, computed, dim):
        super().__init__()
        self.computed, self.dim = computed, dim
        self.v, self.g = nn.Parameter(torch.randn(1, 4)), nn.Parameter(torch.rand(1, 4 if dim else 1) + 1.0)
        self.own, self.inner, self.outer = nn.Linear(4, 2), nn.Linear(4, 5), nn.Linear(5, 3)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        made, v, g = self.own(x).mean(0, keepdim=True), self.v, self.g
        if self.computed == "directions":
            v = torch.cat([v[:, :2], made], 1)
        elif self.computed == "lengths":
            g = made[:, :1]
        w = torch._weight_norm(v, g, self.dim)
        return self.down(self.up(x).relu()) + self.outer(self.inner(w).relu()), w


@pytest.mark.parametrize(
    ("computed", "dim", "inner"), [("directions", 0, 5), ("lengths", 0, 5), ("", 0, 1), ("", 1, 1)]
)
def test_a_normed_weight_is_known_only_where_its_directions_and_lengths_are(computed, dim, inner):
    torch.manual_seed(0)
    model = Lengths(computed, dim)
    zero(model.up.weight, range(4))
    smaller, _ = check(model, torch.randn(3, 4))
    assert smaller.up.out_features == 2
    assert smaller.inner.out_features == inner  # what reads a known weight alone is constant


def test_modules_called_twice_and_shared_weights():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b, self.last = (nn.Linear(6, 6) for _ in range(4))
            self.b.weight = self.a.weight

        def forward(self, x):
            x = torch.relu(self.first(x))
            return self.last(torch.relu(self.b(torch.relu(self.a(torch.relu(self.a(x)))))))

    torch.manual_seed(0)
    model = Twice()
    for layer in (model.first, model.a):
        zero(layer.weight, [1, 2])
    for layer in (model.first, model.a, model.b):
        zero(layer.bias, [1, 2])
    smaller, _ = check(model, torch.randn(2, 6))
    assert smaller.a.weight is smaller.b.weight
    assert smaller.a.weight.shape == (4, 4)
    with torch.no_grad():
        model.first.bias[1] = 1.0  # a constant that one of two calls of a layer would have to fold
    same(model, compact(model, torch.randn(2, 6))[0], torch.randn(2, 6), 1e-6)


def test_constants_that_differ_in_training_are_told():
    torch.manual_seed(0)
    model = moved(nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 1)))
    zero(model[0].weight, [0])
    smaller, report = check(model, torch.randn(4, 2, 9), train=False)
    assert smaller[0].out_channels == 3
    assert "Training mode" in repr(report)
    model[1].running_mean[0], model[0].bias.data[0] = 0.0, 0.0
    model[3].train()
    _, report = check(model, torch.randn(4, 2, 9), train=True)
    assert "Training mode" not in repr(report)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.body, self.last = nn.Linear(4, 8), kind(8, 5, 2, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.body(torch.relu(self.first(x)))[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_inputs_of_recurrent_layers(kind):
    torch.manual_seed(0)
    model = Recurrent(kind)
    zero(model.first.weight, [0, 1, 2])
    zero(model.body.weight_ih_l0, [7], dim=1)
    smaller, _report = check(model, torch.randn(2, 6, 4), train=True)
    assert smaller.first.out_features == smaller.body.input_size == 4
    assert smaller.body.hidden_size == 5


def test_encoder_layers_lose_neurons_and_keep_their_heads():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 12), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    for block in model[1].layers:
        zero(block.linear1.weight, range(10))
        zero(block.self_attn.out_proj.weight, range(4), dim=1)
    smaller, report = check(model, torch.randn(2, 6, 5))
    assert [block.linear1.out_features for block in smaller[1].layers] == [6, 6]
    assert "self_attn" in repr(report)


def test_a_head_for_training_alone_still_fits():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.aux = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)

        def forward(self, x):
            x = torch.relu(self.a(x))
            return (self.b(x), self.aux(x)) if self.training else self.b(x)

    torch.manual_seed(0)
    model = Auxiliary()
    zero(model.a.weight, [0, 1])
    zero(model.b.weight, [2], dim=1)  # but the other head reads it
    smaller, _report = check(model, torch.randn(3, 4), train=True)
    assert smaller.a.out_features == smaller.b.in_features == smaller.aux.in_features == 4
    x = torch.randn(3, 4)
    for mine, its in zip(smaller.train()(x), model.train()(x), strict=True):
        torch.testing.assert_close(mine, its)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x if x.sum() > 0 else -x)


class Sorting(Branching):
    def forward(self, x):
        return self.b(self.a(x).sort(-1).values)


class Counting(Branching):
    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.b(x / x.shape[-1])


@pytest.mark.parametrize(
    ("kind", "words"), [(Branching, "torch.export"), (Sorting, "sort"), (Counting, "fails its check")]
)
def test_what_cannot_be_followed_stays_with_a_reason(kind, words):
    torch.manual_seed(0)
    model = kind()
    zero(model.a.weight, [0, 1])
    smaller, report = check(model, torch.randn(3, 4))
    assert smaller.a.out_features == 6
    assert words in repr(report)


def test_a_wrong_removal_is_taken_back(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model[0].weight, [0, 1])

    def wrong(smaller, graph, solution):
        folded = removal.remove_units(smaller, graph, solution)
        smaller[2].bias.data += 1e-3
        return folded

    monkeypatch.setattr(compaction, "remove_units", wrong)
    smaller, report = compact(model, torch.randn(3, 4))
    assert report.parameters[0] == report.parameters[1]
    assert "fails its check" in report.left[0]
    same(model, smaller, torch.randn(3, 4), 0.0)


def test_the_result_is_a_plain_module(tmp_path):
    torch.manual_seed(0)
    model = moved(Net()).eval()
    zero(model.stem.weight, [0, 1])
    x = torch.randn(2, 3, 14, 14)
    smaller, _ = compact(model, x)
    assert type(smaller) is Net
    assert list(smaller.state_dict()) == list(model.state_dict())
    twin = copy.deepcopy(smaller)
    twin.load_state_dict(smaller.state_dict())
    buffer = io.BytesIO()
    torch.save(smaller, buffer)
    buffer.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(smaller, (x,)).module()
        compiled = torch.compile(smaller, backend="eager", fullgraph=True)
        for other in (twin, torch.load(buffer, weights_only=False), exported, compiled):
            torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-5)
    smaller.train()(x).sum().backward()
    assert all(p.grad.shape == p.shape for p in smaller.parameters())


def test_the_result_is_written_as_onnx():
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 3))
    zero(model[0].weight, range(4))
    smaller, _ = compact(model, torch.randn(2, 1, 5, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(smaller, (torch.randn(2, 1, 5, 5),), dynamo=True, verbose=False)
    onnx.checker.check_model(program.model_proto)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, F64])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    zero(model[0].weight, [1, 2, 3])
    model[0].weight.grad = torch.ones_like(model[0].weight)
    x = torch.randn(4, 5).to(dtype)
    smaller, _ = compact(model, x)
    assert smaller[0].weight.shape == (5, 5)
    assert smaller[0].weight.dtype is dtype
    assert smaller[0].weight.grad is None
    a, b = model(x).detach().double(), smaller(x).detach().double()
    assert float((a - b).abs().max()) <= 4 * torch.finfo(dtype).eps * float(a.abs().max())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: compact("net", torch.ones(1)), TypeError, "got str"),
        (lambda: compact(nn.LazyLinear(3), torch.ones(1, 2)), ValueError, "no values"),
        (lambda: compact(nn.Linear(3, 2, device="meta"), torch.ones(1, 3)), ValueError, "no values"),
        (lambda: compact(nn.Linear(3, 2), torch.ones(1, 4)), ValueError, "example_inputs"),
        (lambda: compact(nn.Linear(3, 2), torch.ones(1, 3), repeats=-1), ValueError, "got -1"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_nan_weights_and_random_outputs_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    zero(model[0].weight, [0])
    with torch.no_grad():
        model[0].bias[0] = float("nan")
    smaller, _ = compact(model, torch.randn(2, 3))
    assert smaller[0].out_features == 4  # a NaN is no constant to fold

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.rand(())

    noisy = nn.Sequential(nn.Linear(3, 4), Noisy(4, 2))
    state = torch.random.get_rng_state()
    zero(noisy[0].weight, [0])
    compact(noisy, torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.random.get_rng_state())


class Reader(nn.Module):
    """A recurrent layer, attention and an encoder layer, as torch has them."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.lstm(x)[0]
        return self.head(self.encoder(h + self.attention(h, h, h, need_weights=False)[0]))


def test_layers_of_torch_that_no_graph_looks_into():
    torch.manual_seed(0)
    model = Reader().double().eval()
    with torch.no_grad():
        for tensor in (model.lstm.weight_ih_l0, model.lstm.weight_hh_l0, model.lstm.bias_ih_l0, model.lstm.bias_hh_l0):
            tensor.reshape(4, 8, -1)[:, 5:] = 0.0
        model.attention.out_proj.weight[:, 2:6] = 0.0
        model.encoder.linear1.weight[:6] = 0.0
    _, report = check(model, torch.randn(2, 7, 5, dtype=F64))
    after = {count.module: (count.before, count.after) for count in report.modules}
    assert after == {"lstm": (8, 5), "attention": (4, 2), "encoder": (16, 10), "encoder.self_attn": (2, 2)}
    assert "lstm: 8 hidden units -> 5" in repr(report)


def test_the_report_holds_what_was_measured():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    with torch.no_grad():
        model[0].weight[16:] = 0.0
    _, report = compact(model, torch.randn(4, 64))
    assert report.cost.repeats == 20
    assert report.cost.parameters == report.parameters
    assert report.cost.flops == report.flops
    assert report.cost.memory[1] < report.cost.memory[0]
    assert all(word in repr(report) for word in ("latency", "peak memory", "before / after"))


class Pooled(nn.Module):
    """A sum over positions, as of a set."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(self.inner(x).relu().sum(1))


class Placed(nn.Module):
    """An embedding and a table of positions, cut to the length of the input."""

    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(11, 6), nn.Parameter(torch.randn(1, 8, 6))
        self.outer = nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(self.embedding(x) + self.places[:, : x.shape[1]])


def test_what_is_constant_at_the_examples_length_alone_is_no_constant():
    torch.manual_seed(0)
    pooled, placed = Pooled().eval(), Placed().eval()
    with torch.no_grad():
        pooled.inner.weight[0], pooled.inner.bias[0] = 0.0, 1.0
        pooled.inner.weight[1], pooled.inner.bias[1] = 0.0, -1.0
        placed.embedding.weight[:, 2] = 0.0
    smaller, report = check(pooled, torch.randn(2, 5, 4))
    assert width(report, "inner.weight") == (5, 4)  # the unit that is always 0 goes, the one that is 1 stays
    same(pooled, smaller, torch.randn(2, 9, 4), 1e-6)
    smaller, _ = check(placed, torch.randint(11, (2, 1)))
    same(placed, smaller, torch.randint(11, (2, 5)), 1e-6)


class Windowed(nn.Module):
    """Two attributes of the same size, one of which means something else."""

    def __init__(self):
        super().__init__()
        self.size, self.window, self.inner, self.outer = 64, 64, nn.Linear(8, 64), nn.Linear(64, 3)

    def forward(self, x):
        x = x[:, : self.window]
        return self.outer(self.inner(x).relu().reshape(len(x), -1, self.size))


def test_only_attributes_that_the_code_needs_change_with_a_size():
    model = Windowed()
    zero(model.inner.weight, range(32))
    zero(model.inner.bias, range(32))
    smaller, report = check(model, torch.randn(2, 5, 8))
    assert (smaller.size, smaller.window) == (32, 64)
    assert report.renamed == ("size",)
    assert "changed too: size." in repr(report)
    same(model, smaller, torch.randn(2, 50, 8), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_wrong_bias_is_noticed_in_every_precision(dtype, monkeypatch):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)).to(dtype)
    zero(model[0].weight, range(2))

    def wrong(smaller, graph, solution):
        removal.remove_units(smaller, graph, solution)
        with torch.no_grad():
            smaller[2].bias += 0.3 * model(torch.randn(9, 4, dtype=dtype)).abs().max()
        return True

    monkeypatch.setattr(compaction, "remove_units", wrong)
    smaller, report = compact(model, torch.randn(3, 4, dtype=dtype), repeats=0)
    assert report.parameters[0] == report.parameters[1]
    assert "fails its check" in report.left[0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), smaller.parameters(), strict=True))


class Bag(nn.Module):
    """Asks of its inputs what shuffled ones do not keep."""

    def __init__(self):
        super().__init__()
        self.bag, self.outer = nn.EmbeddingBag(11, 6), nn.Linear(6, 2)

    def forward(self, x, starts):
        return self.outer(self.bag(x, starts).relu())


class Opaque(nn.Module):
    """Returns an object that says nothing of what is in it."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        class Returned:
            pass

        made = Returned()
        made.out, made.shares = self.attention(x, x, x)
        return made


def test_models_of_which_less_can_be_asked():
    compact(Bag(), (torch.randint(11, (7,)), torch.tensor([0, 3, 5])), repeats=0)
    model = Opaque()
    zero(model.attention.out_proj.weight, range(4), 1)
    smaller, report = compact(model, torch.randn(2, 3, 8), repeats=0)
    assert smaller(torch.randn(2, 3, 8)).shares is not None
    assert "cannot be compared" in repr(report)
