"""Removed units change nothing: smaller modules against those they come from, and which units go, by running them."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from torchreg import L1, Group, ProxOptimizer, attach, heads, matching
from torchreg.training.compaction.attention import ReducedAttention
from torchreg.training.compaction.modules import shrink_modules
from torchreg.training.compaction.recurrent import ReducedRecurrent

F64 = torch.float64
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
CANDIDATE = {nn.LSTM: 2, nn.GRU: 2, nn.RNN: 0}  # the place of its rows among those of the gates


def silence(module, k, unit, direction=0):
    """Zero the candidate of one unit; ``proj_size`` or not."""
    gate, size = CANDIDATE[type(module)], module.hidden_size
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            tensor = getattr(module, f"{name}_l{k}{'_reverse' if direction else ''}", None)
            if tensor is not None:
                tensor[gate * size + unit] = 0.0


def recurrent(kind, dead, **options):
    torch.manual_seed(0)
    made = kind(3, 5, dtype=F64, **options)
    for k, direction, unit in dead:
        silence(made, k, unit, direction)
    return made


def same(one, other):
    for a, b in zip(*(torch.utils._pytree.tree_leaves(x) for x in (one, other)), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def removed(module):
    """The hidden units that are removed, (layers * directions, hidden size)."""
    smaller, (count,) = shrink_modules(module)
    gone = torch.zeros(len(module.all_weights), module.hidden_size, dtype=torch.bool)
    if isinstance(smaller, ReducedRecurrent):
        units = [row for k in range(module.num_layers) for row in getattr(smaller, f"units_{k}")]
        for mask, kept in zip(gone, units, strict=True):
            mask[:] = True
            mask[kept] = False
    assert (count.before, count.after) == (gone.numel(), int((~gone).sum()))
    return gone


VARIANTS = {
    "one layer": ([(0, 0, 1), (0, 0, 4)], {}),
    "without bias": ([(0, 0, 0)], {"bias": False}),
    "batch first": ([(0, 0, 2)], {"batch_first": True}),
    "two layers": ([(0, 0, 1), (0, 0, 2), (0, 0, 3), (1, 0, 0)], {"num_layers": 2}),
    "two directions": ([(0, 0, 1), (0, 0, 2), (0, 1, 3), (0, 1, 4)], {"bidirectional": True}),
    "uneven": (
        [(0, 0, 1), (0, 1, 3), (0, 1, 4), (1, 0, 0), (1, 1, 0), (2, 0, 1), (2, 0, 2)],
        {"num_layers": 3, "bidirectional": True},
    ),
}
each_kind = pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
each_variant = pytest.mark.parametrize(("dead", "options"), VARIANTS.values(), ids=VARIANTS)


@each_kind
@each_variant
def test_recurrent_layers_without_units_that_stay_zero_are_the_same(kind, dead, options):
    module = recurrent(kind, dead, **options)
    smaller, (count,) = shrink_modules(module)
    assert isinstance(smaller, ReducedRecurrent) is (count.after < count.before)
    directions = 2 if options.get("bidirectional") else 1
    layers = options.get("num_layers", 1)
    gone = torch.zeros(layers, directions, 5, dtype=torch.bool)
    for place in dead:
        gone[place] = True
    assert count.after == sum(int((~g).sum(1).max()) * directions for g in gone)
    x = torch.randn(4, 6, 3, dtype=F64)
    wanted = module(x)
    same(smaller(x), wanted)
    state = wanted[1]
    same(smaller(x, state), module(x, state))  # a state that the module gave
    same(smaller(x[0]), module(x[0]))  # unbatched
    lengths = [6, 2, 5, 1] if module.batch_first else [2, 4, 3, 1, 4, 2]
    packed = pack_padded_sequence(x, lengths, batch_first=module.batch_first, enforce_sorted=False)
    (a, states), (b, others) = smaller(packed), module(packed)
    same(states, others)
    same(pad_packed_sequence(a), pad_packed_sequence(b))


@each_kind
@each_variant
def test_units_that_go_are_those_whose_state_never_moves(kind, dead, options):
    module = recurrent(kind, dead, **options)
    x = torch.randn(7, 2, 3, dtype=F64)
    last = module(x.transpose(0, 1) if options.get("batch_first") else x)[1]
    still = ((last[0] if kind is nn.LSTM else last) == 0).all(1)  # the oracle: states after running
    gone = removed(module)
    assert not (gone & ~still).any()
    directions = 2 if options.get("bidirectional") else 1
    for mask, zero in zip(gone.split(directions), still.split(directions), strict=True):
        assert set(mask.sum(1).tolist()) == {int(zero.sum(1).min())}  # as many in both directions of a layer


def test_units_that_read_only_each_other_stay_zero_together_and_through_layers():
    module = recurrent(nn.LSTM, [], num_layers=2)
    with torch.no_grad():
        for k, units in ((0, (1, 3)), (1, (0, 2))):
            for unit in units:
                row = 10 + unit
                into = getattr(module, f"weight_ih_l{k}")
                if k == 0:
                    into[row] = 0.0
                else:
                    into[row, [0, 2, 4]] = 0.0  # it reads units 1 and 3 of the layer below alone
                recurrent_weight = getattr(module, f"weight_hh_l{k}")
                recurrent_weight[row, [u for u in range(5) if u not in units]] = 0.0
                getattr(module, f"bias_ih_l{k}")[row] = 0.7
                getattr(module, f"bias_hh_l{k}")[row] = -0.7
    mask = removed(module)
    assert mask.nonzero().tolist() == [[0, 1], [0, 3], [1, 0], [1, 2]]
    x = torch.randn(9, 2, 3, dtype=F64)
    assert (module(x)[1][0].transpose(0, 1)[:, mask] == 0).all()
    same(shrink_modules(module)[0](x), module(x))
    with torch.no_grad():
        module.weight_hh_l0[11, 0] = 1e-30  # one reads a unit that moves, so neither stays zero, nor what reads them
    assert not removed(module).any()


@each_kind
@pytest.mark.parametrize("seed", range(6))
def test_chains_of_reading_are_followed_to_their_end(kind, seed):
    torch.manual_seed(seed)
    module = kind(3, 12, num_layers=2, bias=False, dtype=F64)
    start = 12 * CANDIDATE[kind]
    with torch.no_grad():
        for k in range(2):
            into, among = getattr(module, f"weight_ih_l{k}"), getattr(module, f"weight_hh_l{k}")
            into[start : start + 12] *= torch.rand(12, into.shape[1]) < (0.05 if k == 0 else 0.04)
            among[start : start + 12] *= torch.rand(12, 12) < 0.08
        module.weight_ih_l0[start, 0] = 1.0
    last = module(torch.randn(30, 4, 3, dtype=F64))[1]
    still = ((last[0] if kind is nn.LSTM else last) == 0).all(1)  # after more steps than units
    assert still.any()
    assert not still.all()
    still[still.all(1), 0] = False  # a layer keeps one unit at least
    assert torch.equal(removed(module), still)


def test_a_bias_keeps_a_unit_whatever_its_rows():
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        module = recurrent(kind, [(0, 0, 1)])
        with torch.no_grad():
            row = CANDIDATE[kind] * 5 + 1
            module.bias_ih_l0[row], module.bias_hh_l0[row] = 0.5, -0.5
        assert removed(module)[0, 1] == (kind is not nn.GRU)  # a GRU's gate moves one of the two
        same(shrink_modules(module)[0](x := torch.randn(6, 2, 3, dtype=F64)), module(x))
        with torch.no_grad():
            module.bias_ih_l0[row] = -0.75
        assert not removed(module).any()
    relu = recurrent(nn.RNN, [(0, 0, 1)], nonlinearity="relu")
    with torch.no_grad():
        relu.bias_ih_l0[1] = -0.75
    assert removed(relu).nonzero().tolist() == [[0, 1]]
    same(shrink_modules(relu)[0](x), relu(x))


def test_projected_lstm_loses_cells_and_keeps_its_outputs():
    module = recurrent(nn.LSTM, [(0, 0, 1), (0, 0, 4), (1, 0, 2)], proj_size=2, num_layers=2)
    x = torch.randn(6, 2, 3, dtype=F64)
    smaller, (count,) = shrink_modules(module)
    assert count.after == 7
    same(smaller(x), module(x))
    same(smaller(x, module(x)[1]), module(x, module(x)[1]))
    assert removed(module).nonzero().tolist() == [[0, 1], [0, 4], [1, 2]]
    for unit in range(5):
        silence(module, 0, unit)
        silence(module, 1, unit)
    assert removed(module).sum(1).tolist() == [2, 2]  # three cells stay: torch wants more than projections
    same(shrink_modules(module)[0](x), module(x))


def test_a_state_that_the_removal_does_not_allow_is_refused():
    module = recurrent(nn.LSTM, [(0, 0, 1)])
    smaller = shrink_modules(module)[0]
    x, zero, one = torch.randn(4, 2, 3, dtype=F64), torch.zeros(1, 2, 5, dtype=F64), torch.ones(1, 2, 5, dtype=F64)
    same(smaller(x, (zero, zero)), module(x, (zero, zero)))
    with pytest.raises(ValueError, match="start at zero"):
        smaller(x, (zero, one))
    with pytest.raises(ValueError, match=r"shape \(1, \[batch,\] 5\), got \(1, 2, 4\)"):
        smaller(x, (zero[..., :4], zero))
    compiled = torch.compile(smaller, backend="aot_eager")
    with torch.no_grad():
        same(compiled(x, (zero, zero)), module(x, (zero, zero)))
        with pytest.raises(RuntimeError, match="start at zero"):
            compiled(x, (zero, one))


def test_a_stack_of_recurrent_layers_drops_out_between_them_while_training():
    module = recurrent(nn.GRU, [(0, 0, 1)], num_layers=2, dropout=0.5)
    smaller, x = shrink_modules(module)[0], torch.randn(4, 2, 3, dtype=F64)
    torch.manual_seed(1)
    first = smaller(x)[0]
    assert not torch.equal(first, smaller(x)[0])
    assert torch.equal(smaller.eval()(x)[0], smaller(x)[0])
    same(smaller(x), module.eval()(x))


def attention(gone=(), constant=(), valueless=(), **options):
    torch.manual_seed(0)
    options = {"embed_dim": 12, "num_heads": 4, "dtype": F64, **options}
    made = nn.MultiheadAttention(**options)
    values = made.in_proj_weight[24:] if made.in_proj_weight is not None else made.v_proj_weight
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p))
        for h in gone:
            made.out_proj.weight[:, 3 * h : 3 * h + 3] = 0.0
        for h in (*constant, *valueless):
            values[3 * h : 3 * h + 3] = 0.0
        for h in valueless:
            for bias in (made.in_proj_bias[24:] if made.in_proj_bias is not None else None, made.bias_v):
                if bias is not None:
                    bias[..., 3 * h : 3 * h + 3] = 0.0
    return made


def sequences(module, batch=2, length=5, keys=7):
    q = torch.randn(batch, length, module.embed_dim, dtype=F64)
    k, v = (torch.randn(batch, keys, size, dtype=F64) for size in (module.kdim, module.vdim))
    return (q, k, v) if module.batch_first else tuple(x.transpose(0, 1) for x in (q, k, v))


ATTENTION = {
    "plain": ({"gone": [1], "constant": [0], "valueless": [3]}, {}, 3),
    "batch first": ({"gone": [2], "constant": [0]}, {"batch_first": True}, 2),
    "without bias": ({"gone": [2], "valueless": [0]}, {"bias": False}, 2),
    "other widths": ({"gone": [1], "constant": [0]}, {"kdim": 6, "vdim": 5}, 2),
    "appended keys": ({"gone": [1], "constant": [0], "valueless": [3]}, {"add_bias_kv": True}, 2),
    "appended zeros": ({"gone": [1], "constant": [0], "valueless": [3]}, {"add_zero_attn": True}, 2),
    "both, batch first": (
        {"gone": [1], "valueless": [3]},
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
        2,
    ),
    "all heads": ({"gone": [0, 1, 2, 3]}, {}, 3),
    "all constant": ({"constant": [0, 1, 2, 3]}, {}, 3),  # the constant of the one that stays counts once
}


@pytest.mark.parametrize(("dead", "options", "fewer"), ATTENTION.values(), ids=ATTENTION)
def test_attention_without_dead_heads_is_the_same_under_every_mask(dead, options, fewer):
    module = attention(**dead, **options)
    smaller, (count,) = shrink_modules(module)
    assert isinstance(smaller, ReducedAttention)
    assert (count.before, count.after) == (4, 4 - fewer)
    given = sequences(module)
    causal = torch.ones(5, 7, dtype=torch.bool).triu(2)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    masks = [
        {},
        {"attn_mask": causal},
        {"attn_mask": causal, "is_causal": True},
        {"attn_mask": torch.randn(5, 7, dtype=F64)},
        {"attn_mask": torch.rand(8, 5, 7) > 0.8},
        {"attn_mask": torch.randn(8, 5, 7, dtype=F64), "key_padding_mask": torch.randn(2, 7, dtype=F64)},
        {"key_padding_mask": padding},
        {"key_padding_mask": padding, "attn_mask": causal},
    ]
    for mask in masks:
        if mask.get("is_causal") and (options.get("add_bias_kv") or options.get("add_zero_attn")):
            continue  # torch drops the mask for the hint, and masks other keys
        plain = {k: v for k, v in mask.items() if k != "is_causal"}
        same(smaller(*given, need_weights=False, **mask)[0], module(*given, need_weights=True, **plain)[0])
    one = [x[0] if options.get("batch_first") else x[:, 0] for x in given]
    same(smaller(*one, attn_mask=causal)[0], module(*one, attn_mask=causal)[0])
    same(
        smaller(*one, attn_mask=masks[4]["attn_mask"][:4], key_padding_mask=padding[1])[0],
        module(*one, attn_mask=masks[4]["attn_mask"][:4], key_padding_mask=padding[1])[0],
    )
    assert smaller(*given)[1] is None


def test_self_attention_in_eval_mode_takes_torchs_fast_path_and_is_the_same():
    module = attention(gone=[1], constant=[2], batch_first=True).eval()
    x = sequences(module)[0]
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    smaller = shrink_modules(module)[0]
    with torch.no_grad():
        same(smaller(x, x, x)[0], module(x, x, x)[0])
        fast = module(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        same(smaller(x, x, x, key_padding_mask=padding)[0], fast)


def test_constant_heads_stay_while_their_weights_are_dropped():
    module = attention(constant=[1], valueless=[2], dropout=0.3)
    given, training = sequences(module), shrink_modules(module)[0]
    assert training.heads.tolist() == [0, 1, 3]
    smaller = shrink_modules(module.eval())[0]
    assert smaller.heads.tolist() == [0, 3]
    same(training.eval()(*given)[0], module(*given)[0])
    same(smaller(*given)[0], module(*given)[0])
    smaller.train()
    assert not torch.equal(smaller(*given)[0], smaller(*given)[0])


def test_attention_without_a_bias_gets_one_where_appended_values_are_constant_and_not_otherwise():
    assert shrink_modules(attention(gone=[1], bias=False))[0].out_proj.bias is None
    module = attention(constant=[1])
    module.out_proj.bias = None
    given = sequences(module)
    smaller = shrink_modules(module)[0]
    assert smaller.out_proj.bias is not None
    same(smaller(*given)[0], module(*given)[0])


def test_attention_under_autocast_has_its_precision():
    module = attention(gone=[1], batch_first=True).float()
    smaller, x = shrink_modules(module)[0], sequences(module)[0].float()
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (m(x, x, x, key_padding_mask=padding, need_weights=False)[0] for m in (smaller, module))
    assert one.dtype is other.dtype is torch.bfloat16
    assert (one - other).float().norm() < 0.02 * other.float().norm()  # a few roundings of 2 ** -8


def test_what_reduced_attention_cannot_give_is_an_error():
    module = attention(gone=[1])
    smaller, given = shrink_modules(module)[0], sequences(module)
    with pytest.raises(ValueError, match="1 of 4 heads were removed"):
        smaller(*given, need_weights=True, average_attn_weights=False)
    with pytest.raises(RuntimeError, match="is_causal"):
        smaller(*given, is_causal=True)


ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": nn.SiLU(), "sigmoid": torch.sigmoid}


def layer(kind=nn.TransformerEncoderLayer, heads=(1,), seed=0, **options):
    torch.manual_seed(seed)
    made = kind(8, 4, 10, **{"batch_first": True, "dropout": 0.0, "dtype": F64, **options})
    with torch.no_grad():
        for p in made.parameters():
            if p.dim() > 1 or p.numel() != 8:  # norms stay
                p.copy_(torch.randn_like(p))
        made.linear1.weight[[0, 3, 4]] = 0.0
        made.linear2.weight[:, [4, 7]] = 0.0
        for h in heads:
            made.self_attn.out_proj.weight[:, 2 * h : 2 * h + 2] = 0.0
    return made


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"bias": False}, {"batch_first": False}], ids=str)
def test_encoder_layers_without_dead_neurons_and_heads_are_the_same(activation, options):
    made = layer(activation=activation, **options)
    smaller, counts = shrink_modules(made)
    assert [(c.units, c.before, c.after) for c in counts] == [("neurons", 10, 6), ("heads", 4, 3)]
    x = torch.randn(3, 5, 8, dtype=F64)
    causal, padding = torch.ones(5, 5).triu(1).bool(), torch.zeros(3, 5).bool()
    if not options.get("batch_first", True):
        x, padding = x.transpose(0, 1), padding
    padding[1, 4:] = True
    for mode in (True, False):
        made.train(mode)
        smaller.train(mode)
        for grads in (True, False):
            with torch.set_grad_enabled(grads):  # without gradients and in eval mode torch runs one fused operator
                same(smaller(x), made(x))
                same(smaller(x, src_mask=causal), made(x, src_mask=causal))
                real = ~padding if options.get("batch_first", True) else ~padding.T
                same(smaller(x, src_key_padding_mask=padding)[real], made(x, src_key_padding_mask=padding)[real])


def test_only_neurons_removed_leave_the_fused_operator_in_place():
    made = layer(heads=()).eval()
    smaller, counts = shrink_modules(made)
    assert type(smaller.self_attn) is nn.MultiheadAttention
    assert "whatever the input" in counts[1].reason
    seen = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x = torch.randn(3, 5, 8, dtype=F64)
    with torch.no_grad(), Seen():
        got = smaller(x)
    assert any("_transformer_encoder_layer_fwd" in name for name in seen)
    with torch.no_grad():
        same(got, made(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("pattern", [[(1,), (1, 2)], [(), (0,)], [(3,), ()]], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_stacks_of_encoder_layers_are_the_same_padding_included(pattern, frozen):
    stack = nn.TransformerEncoder(layer(), 2)
    for k, dead in enumerate(pattern):
        stack.layers[k] = layer(heads=dead, seed=k + 1)
    stack.requires_grad_(not frozen)
    smaller, counts = shrink_modules(stack)
    assert [c.after for c in counts] == [6, 4 - len(pattern[0]), 6, 4 - len(pattern[1])]
    x, padding = torch.randn(3, 5, 8, dtype=F64), torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 2:] = padding[2, 4:] = True
    for mode, grads in itertools.product((True, False), repeat=2):
        stack.train(mode)
        smaller.train(mode)
        with torch.set_grad_enabled(grads):
            same(smaller(x), stack(x))
            one, other = smaller(x, src_key_padding_mask=padding), stack(x, src_key_padding_mask=padding)
            same(one[~padding], other[~padding])
            if not grads and not mode:
                assert (other[padding] == 0).all()  # torch leaves the padding out and writes zeros
                same(one, other)


def test_decoders_and_whole_transformers_are_the_same():
    torch.manual_seed(0)
    made = nn.Transformer(8, 4, 2, 2, 10, dropout=0.0, batch_first=True, dtype=F64)
    made.encoder.layers[0], made.encoder.layers[1] = layer(seed=1), layer(seed=2)
    for k in range(2):
        made.decoder.layers[k] = layer(nn.TransformerDecoderLayer, seed=k)
        nn.init.zeros_(made.decoder.layers[k].multihead_attn.out_proj.weight[:, :4])
    smaller, counts = shrink_modules(made)
    assert [c.after for c in counts] == [6, 3] * 2 + [6, 3, 2] * 2
    a, b = torch.randn(2, 6, 8, dtype=F64), torch.randn(2, 5, 8, dtype=F64)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=F64)
    same(smaller(a, b, tgt_mask=causal), made(a, b, tgt_mask=causal))
    same(smaller.eval()(a, b, tgt_mask=causal, tgt_is_causal=True), made.eval()(a, b, tgt_mask=causal))


def test_constant_neurons_stay_while_they_are_dropped_at_random():
    made = layer(dropout=0.2)  # relu of a bias <= 0 is zero, dropped or not
    with torch.no_grad():
        made.linear1.bias[:5] = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0])
    columns, x = made.linear2.weight, torch.randn(3, 5, 8, dtype=F64)
    training = shrink_modules(made)[0]
    smaller = shrink_modules(made.eval())[0]
    assert torch.equal(training.linear2.weight, columns[:, [0, 1, 2, 5, 6, 8, 9]])  # nobody reads 4 and 7
    assert torch.equal(smaller.linear2.weight, columns[:, [1, 2, 5, 6, 8, 9]])
    same(training.eval()(x), made(x))
    same(smaller(x), made(x))


def test_the_constant_of_a_neuron_that_stays_counts_once():
    made = layer()
    with torch.no_grad():
        made.linear1.weight.zero_()
        made.linear1.bias.abs_()
    smaller, counts = shrink_modules(made)
    assert counts[0].after == 1
    same(smaller(x := torch.randn(3, 5, 8, dtype=F64)), made(x))


def test_one_neuron_stays_where_all_are_dead():
    made = layer()
    nn.init.zeros_(made.linear2.weight)
    smaller, counts = shrink_modules(made)
    assert counts[0].after == 1
    same(smaller(x := torch.randn(3, 5, 8, dtype=F64)), made(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = recurrent(nn.LSTM, [(0, 0, 1)]).eval()
        self.up = nn.Linear(5, 8, dtype=F64)
        self.encoder = layer()
        self.again = self.encoder
        self.frozen = attention(gone=[0], embed_dim=8, batch_first=True)
        self.frozen.in_proj_weight.requires_grad_(False)

    def forward(self, x):
        y = self.again(self.encoder(self.up(self.lstm(x)[0])))
        return self.frozen(y, y, y)[0]


@pytest.fixture
def model():
    return Model()


X = torch.linspace(-1, 1, 4 * 6 * 3, dtype=F64).reshape(4, 6, 3)


def test_the_model_given_and_the_random_state_stay_as_they_were(model):
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    wanted = model(X)
    smaller, counts = shrink_modules(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [str(c) for c in counts] == [
        "lstm: 5 hidden units -> 4",
        "encoder: 10 neurons -> 6",
        "encoder.self_attn: 4 heads -> 3",
        "frozen: 4 heads -> 3",
    ]
    assert smaller.again is smaller.encoder  # shared as before
    assert not smaller.lstm.training
    assert smaller.encoder.self_attn.training
    assert not smaller.frozen.q_proj.weight.requires_grad
    assert smaller.frozen.q_proj.bias.requires_grad
    same(smaller(X), wanted)
    size = {m: sum(p.numel() for p in m.parameters()) for m in (model, smaller)}
    assert size[smaller] < size[model]


def test_gradients_of_what_stays_are_those_of_before(model):
    smaller = shrink_modules(model)[0]
    for m in (model, smaller):
        m(X).square().sum().backward()
    same(smaller.up.weight.grad, model.up.weight.grad)
    kept = [0, 2, 3, 4]
    rows = [g * 5 + u for g in range(4) for u in kept]
    same(smaller.lstm.layers[0].weight_hh_l0.grad, model.lstm.weight_hh_l0.grad[rows][:, kept])
    same(smaller.encoder.linear1.weight.grad, model.encoder.linear1.weight.grad[[1, 2, 5, 6, 8, 9]])


@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")  # torch's, of every nn.LSTM
def test_the_result_is_a_plain_module(model):
    smaller = shrink_modules(model)[0]
    wanted = smaller(X)
    again, _ = shrink_modules(smaller)
    same(again(X), wanted)
    other = shrink_modules(Model())[0]
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    other.load_state_dict(smaller.state_dict())
    assert torch.equal(other(X), wanted)
    same(pickle.loads(pickle.dumps(smaller))(X), wanted)
    torch.testing.assert_close(copy.deepcopy(smaller).float()(X.float()).double(), wanted, rtol=1e-4, atol=1e-4)
    exported = torch.export.export(smaller.eval(), (X,)).module()
    same(exported(X), smaller(X))
    torch._dynamo.reset()
    with torch.no_grad():
        same(torch.compile(smaller, backend="eager")(X), smaller(X))


def test_what_is_left_alone_says_why(model):
    class Own(nn.GRU):
        pass

    shared = nn.ModuleList([attention(gone=[0]), attention(gone=[0])])
    shared[1].out_proj.weight = shared[0].out_proj.weight
    pruned = layer(heads=())
    prune.l1_unstructured(pruned.linear1, "weight", amount=3)
    normed = layer(heads=())
    parametrizations.weight_norm(normed.linear1)
    hooked = recurrent(nn.GRU, [(0, 0, 1)])
    hooked.register_forward_hook(lambda *a: None)
    odd = layer(heads=(), activation=lambda x: x.flip(-1))
    reasons = {
        "shares parameters": shared,
        "prune.remove": pruned,
        "weights are computed": normed,
        "hooks": hooked,
        "not known to act on each entry": odd,
        "Own is not torch's own": Own(3, 5),
        "meta device": nn.GRU(3, 5, device="meta"),
        "none is dead": nn.GRU(3, 5),
    }
    for words, made in reasons.items():
        kept, counts = shrink_modules(made)
        assert words in str(counts[0])
        assert counts[0].before == counts[0].after
        assert [type(m) for m in kept.modules()][:2] == [type(m) for m in made.modules()][:2]
    assert shrink_modules(nn.Linear(2, 2))[1] == ()


class Recurrence(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.head = kind(3, 16, batch_first=True), nn.Linear(16, 1)

    def forward(self, x):
        return self.head(self.inner(x)[0])


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.inner = nn.Linear(3, 16), nn.MultiheadAttention(16, 8, batch_first=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        y = self.up(x)
        return self.head(self.inner(y, y, y)[0])


@pytest.mark.parametrize(
    ("make", "pattern", "penalty"),
    [
        (lambda: Recurrence(nn.LSTM), "inner.*", Group(L1(6e-3), by=heads(16, fused=4), weights=1.0)),
        (lambda: Recurrence(nn.GRU), "inner.*", Group(L1(6e-3), by=heads(16, fused=3), weights=1.0)),
        (SelfAttention, "inner.out_proj.weight", Group(L1(0.05), by=heads(8, dim=1), weights=1.0)),
    ],
    ids=["LSTM", "GRU", "attention"],
)
def test_units_that_training_sets_to_zero_are_removed(make, pattern, penalty):
    torch.manual_seed(0)
    net, x = make(), torch.randn(32, 8, 3)
    y = x[..., :1].cumsum(1).tanh()
    term = attach(penalty, matching(net, pattern))
    optimizer = ProxOptimizer(torch.optim.Adam(net.parameters(), lr=0.02), term)
    for _ in range(120):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    smaller, (count,) = shrink_modules(net)
    assert 0 < count.after < count.before
    torch.testing.assert_close(smaller(x), net(x), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in net.parameters())


def test_nan_and_half_precision():
    module = recurrent(nn.GRU, [(0, 0, 1), (0, 0, 2)])
    with torch.no_grad():
        module.weight_ih_l0[12, 0] = torch.nan
    assert removed(module).nonzero().tolist() == [[0, 1]]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        made = layer().to(dtype).eval()
        smaller, _ = shrink_modules(made)
        assert {p.dtype for p in smaller.parameters()} == {dtype}
        x = torch.randn(3, 5, 8).to(dtype)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(smaller(x), made(x), rtol=8 * eps, atol=32 * eps)
