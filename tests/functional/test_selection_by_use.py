"""weights() chooses exactly the parameters that enter a product with activations, as seen at torch's dispatcher."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, embedding, linear
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchreg import L1, Group, attach, filters, matching, register_weights, weights

os.environ.setdefault("HF_HUB_OFFLINE", "1")
PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "mv",
    "dot",
    "convolution",
    "_trilinear",
    "mkldnn_rnn_layer",
    "linear",
    "_grouped_mm",
)


class Uses(TorchDispatchMode):
    """Which parameters, or views of them, are operands of products, and which are looked up by index."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
        self.multiplied: set[str] = set()
        self.looked_up: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        op = func.overloadpacket.__name__
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor) and x.dim() >= 2 and x.untyped_storage().data_ptr() in self.names:
                name = self.names[x.untyped_storage().data_ptr()]
                if op in PRODUCTS:
                    self.multiplied.add(name)
                if op == "embedding":
                    self.looked_up.add(name)
        return out


def multiplied(model, *args, **kwargs):
    """The oracle: what multiplies activations in a pass, embeddings apart."""
    with Uses(model) as uses:
        model(*args, **kwargs)
    return uses.multiplied - uses.looked_up


class ByHand(nn.Module):
    """Parameters of one's own, as papers' code has them."""

    def __init__(self):
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, 4)), nn.Parameter(torch.zeros(1, 6, 4))
        self.W, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.zeros(3))
        self.w_out = nn.Parameter(torch.randn(1, 3))
        self.kernel = nn.Parameter(torch.randn(2, 6, 3))
        self.layer_scale, self.gamma = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.ones(1, 1, 3))
        self.norm = nn.LayerNorm((6, 4))
        self.act = nn.PReLU(4)

    def forward(self, x):
        x = self.act((self.norm(x + self.pos_embed) + self.cls_token).transpose(1, 2)).transpose(1, 2)
        x = linear(x, self.W, self.b) * self.gamma
        return linear(x * self.layer_scale.t(), self.w_out) + conv1d(x, self.kernel).sum()


class Norm2d(nn.Module):
    """A norm of one's own, with a weight that has two dimensions."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x):
        return x / x.norm() * self.weight


class Words(nn.Module):
    """An embedding of one's own, its output tied."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.attend, self.head = nn.MultiheadAttention(4, 2, add_bias_kv=True), nn.Linear(4, 5)
        self.head.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x)
        return self.head(self.attend(h, h, h)[0])


class Attended(nn.Module):
    """Attention over keys and values of other widths: three projections in place of one."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True)

    def forward(self, x):
        return self.attend(x[..., :4], x[..., :3], x)[0]


OWN = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 1, 2)),
             (2, 2, 6, 6)),
    "conv 1d and 3d": (lambda: nn.Sequential(nn.Conv1d(3, 1, 1), nn.Unflatten(2, (2, 2, 1)), nn.Conv3d(1, 2, 1)),
                       (2, 3, 4)),
    "bilinear": (lambda: Twice(nn.Bilinear(3, 3, 2)), (4, 3)),
    "lstm": (lambda: nn.LSTM(3, 4, num_layers=2, proj_size=2, bidirectional=True), (5, 2, 3)),
    "gru": (lambda: nn.GRU(3, 4), (5, 2, 3)),
    "cell": (lambda: nn.RNNCell(3, 4), (2, 3)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0), (5, 2, 4)),
    "attention": (Attended, (3, 2, 5)),
    "by hand": (ByHand, (2, 6, 4)),
    "own norm": (lambda: nn.Sequential(nn.Linear(3, 3), Norm2d()), (4, 3)),
    "one output": (lambda: nn.Linear(3, 1), (4, 3)),
}  # fmt: skip


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", OWN)
def test_what_is_chosen_is_what_multiplies_activations(kind):
    build, shape = OWN[kind]
    torch.manual_seed(0)
    model = build()
    assert set(weights(model)) == multiplied(model, torch.randn(shape)) != set()


def test_what_is_tied_to_an_embedding_is_left_out_with_the_reason():
    model = Words()
    chosen = weights(model)
    assert set(chosen) == multiplied(model, torch.randint(5, (3, 2)))
    assert "embedding" in chosen.left_out["embed.weight"]
    assert set(chosen) | set(chosen.left_out) == {name for name, _ in model.named_parameters()}


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT, IMAGE = {"vocab_size": 32}, {"image_size": 32, "patch_size": 8}
MODELS = {
    "bert": {**TEXT, **SMALL},
    "gpt2": {**TEXT, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "t5": {**TEXT, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    "mixtral": {**TEXT, **SMALL, "num_key_value_heads": 2, "num_local_experts": 2, "head_dim": 8},
    "mamba": {**TEXT, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "vit": {**IMAGE, **SMALL},
    "dinov2": {**IMAGE, **SMALL},
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}
SPARED = {  # what a rule by dimension would take
    "t5": "relative_attention_bias.weight",
    "mamba": "A_log",
    "vit": "cls_token",
    "dinov2": "mask_token",
    "swin": "relative_position_bias_table",
    "convnextv2": "grn.weight",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_of_transformers_models_the_matrices_are_chosen_and_nothing_else(kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **MODELS[kind])
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    words = torch.arange(8)[None]
    given = {"input_ids": words} if "vocab_size" in MODELS[kind] else {"pixel_values": torch.randn(1, 3, 32, 32)}
    if kind == "t5":
        given["decoder_input_ids"] = words
    chosen = weights(model)  # no warning: names and shapes tell
    assert set(chosen) == multiplied(model, **given) != set()
    if kind in SPARED:
        assert any(name.endswith(SPARED[kind]) for name in chosen.left_out)


def scripted(model, x):
    return torch.jit.script(model)


def traced(model, x):
    return torch.jit.trace(model, x)


def exported(model, x):
    return torch.export.export(model, (x,)).module()


def unflattened(model, x):
    return torch.export.unflatten(torch.export.export(model, (x,)))


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm((3, 4))
        self.hidden, self.up = nn.Linear(4, 4), nn.ConvTranspose1d(3, 2, 2)

    def forward(self, x):
        return self.up(self.hidden(self.norm(self.embed(x))))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("compiled", [scripted, traced, exported, unflattened])
def test_scripted_traced_and_exported_modules_give_what_the_model_gives(compiled):
    model, x = Layers(), torch.randint(5, (2, 3))
    chosen = weights(compiled(model, x))
    assert list(chosen) == list(weights(model)) == ["hidden.weight", "up.weight"]
    assert chosen.transposed == {"up.weight": 1}
    alone = weights(compiled(nn.Linear(4, 4), torch.randn(2, 4)))
    assert list(alone) == ["weight"]
    with pytest.raises(ValueError, match="embedding"):
        weights(compiled(nn.Embedding(5, 4), x))


def test_where_a_class_is_lost_the_remedy_is_named_and_works():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.layer = nn.Parameter(torch.zeros(5, 4)), nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(embedding(x, self.weight))

    register_weights(Own)  # it looks its weight up
    model = Own()
    graph = torch.fx.symbolic_trace(model)
    with pytest.raises(ValueError, match=r"'weight' of shape \(5, 4\).*class is lost.*get_parameter"):
        weights(graph)
    chosen = {name: graph.get_parameter(name) for name in weights(model)}
    assert list(attach(L1(0.1), chosen).parameters) == ["layer.weight"]


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.core, self.start = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.zeros(4, 3))
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer((x + self.start) @ self.core)


def test_what_neither_class_nor_name_tells_is_left_out_with_a_warning_and_can_be_registered():
    class Registered(Mixing):
        pass

    class Inherits(Registered):
        pass

    with pytest.warns(UserWarning, match=r"leaves out 2 .*core \(3, 3\) of Mixing.*register_weights\(Mixing.*matching"):
        chosen = weights(Mixing())
    assert list(chosen) == ["layer.weight"]
    assert "core" in chosen.left_out
    with pytest.warns(UserWarning, match="core"):
        term = attach(L1(0.1), Mixing())
    assert "left out: core, start" in repr(term)
    assert "layer.bias" not in repr(term)  # biases are known to be left out
    assert register_weights(Registered, "core") is Registered
    for kind in (Registered, Inherits):
        model = kind()
        assert set(weights(model)) == multiplied(model, torch.randn(4, 3)) == {"core", "layer.weight"}
    with pytest.warns(UserWarning, match="core"):
        weights(Mixing())  # the base class is not told
    register_weights(Registered)
    assert list(weights(Registered())) == ["layer.weight"]


def test_a_model_of_unknown_parameters_alone_is_an_error_that_names_them():
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = nn.Parameter(torch.randn(3, 3))

    with pytest.raises(ValueError, match=r"Alone.*core.*matching.*of_type.*register_weights"):
        weights(Alone())


@pytest.mark.parametrize("given", [(Mixing(), "core"), (Mixing, 3), (int, "core")])
def test_registering_takes_a_class_and_names(given):
    with pytest.raises(TypeError, match="module class and names"):
        register_weights(*given)


def test_selections_join_with_what_they_left_out():
    model = Layers()
    joined = weights(model) | matching(model, "norm.weight")
    assert list(joined) == ["hidden.weight", "up.weight", "norm.weight"]
    assert "norm.weight" not in joined.left_out
    assert "embed.weight" in joined.left_out
    assert joined.transposed == {"up.weight": 1}
    assert "left out: embed.weight (belongs to an embedding)" in repr(joined)


def test_frozen_weights_are_told():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].weight.requires_grad_(False)
    assert "gradient" in weights(model).left_out["0.weight"]
    assert "left out: 0.weight" in repr(attach(L1(0.1), model))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("norm", [lambda layer: layer, weight_norm], ids=["plain", "weight_norm"])
def test_a_penalty_of_a_model_compiles_in_one_graph(norm):
    model, penalty = (
        nn.Sequential(nn.ConvTranspose1d(3, 2, 2), nn.LayerNorm((2, 3)), norm(nn.Conv1d(2, 1, 2))),
        Group(L1(0.1), filters),
    )
    compiled = torch.compile(lambda: penalty(model), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(), penalty(model))
