"""Which parameters weights, matching and of_type choose, and what they call them."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from torchreg import L1, matching, of_type, weights


class Text(nn.Module):
    """An embedding tied to the output layer, as language models have it."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 4), nn.LayerNorm((2, 4))
        self.hidden, self.out = nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight


class Wrapper(nn.Module):
    """What DataParallel and DistributedDataParallel do to names."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def net():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 1)
    )


WEIGHTS = ["0.weight", "4.weight", "5.weight"]


def test_weights_are_matrices_and_filters_without_biases_and_norms():
    model = net()
    chosen = weights(model)
    assert list(chosen) == WEIGHTS
    assert all(chosen[name] is p for name, p in model.named_parameters() if name in chosen)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm((3, 2)),
        nn.RMSNorm((3, 2)),
        nn.GroupNorm(1, 3),
        nn.BatchNorm1d(3),
        nn.InstanceNorm1d(3, affine=True),
        nn.SyncBatchNorm(3),
    ],
)
def test_every_norm_is_spared_whatever_its_shape(norm):
    assert list(weights(nn.Sequential(norm, nn.Linear(3, 3)))) == ["1.weight"]


@pytest.mark.parametrize("embedding", [nn.Embedding(5, 3), nn.EmbeddingBag(5, 3)])
def test_embeddings_are_spared(embedding):
    assert list(weights(nn.Sequential(embedding, nn.Linear(3, 3)))) == ["1.weight"]


def test_what_is_tied_to_an_embedding_is_an_embedding():
    assert list(weights(Text())) == ["hidden.weight"]
    assert list(matching(Text(), "out.*")) == ["out.weight"]  # an explicit selector is never filtered


def test_frozen_parameters_are_spared_but_by_name():
    model = net()
    model[4].weight.requires_grad_(False)
    assert list(weights(model)) == ["0.weight", "5.weight"]
    assert list(matching(model, "4.*")) == ["4.weight", "4.bias"]


def test_tied_parameters_come_once_and_under_either_name():
    model = Tied()
    assert list(weights(model)) == ["encoder.weight"]
    assert list(matching(model, "*.weight")) == ["encoder.weight"]
    assert matching(model, "decoder.weight")["decoder.weight"] is model.encoder.weight
    assert list(of_type(model, nn.Linear)) == ["encoder.weight", "encoder.bias", "decoder.bias"]
    assert float(L1(1.0)(model).detach()) == pytest.approx(float(model.encoder.weight.abs().sum().detach()), rel=1e-6)


@pytest.mark.parametrize("parametrization", [weight_norm, spectral_norm])
def test_a_parametrized_module_gives_explicit_selectors_the_raw_leaves_that_are_trained(parametrization):
    model = nn.Sequential(parametrization(nn.Linear(4, 3)), nn.Linear(3, 1))
    for chosen in (of_type(model, nn.Linear), matching(model, "0.parametrizations.*")):
        raw = {name: p for name, p in chosen.items() if name.startswith("0.parametrizations.weight.")}
        assert raw
        assert all(p.is_leaf and p.requires_grad for p in raw.values())
        assert set(map(id, raw.values())) <= {id(p) for p in model.parameters()}
    assert "1.weight" in weights(model)


def test_a_parametrized_embedding_is_still_an_embedding():
    assert list(weights(nn.Sequential(weight_norm(nn.Embedding(5, 3)), nn.Linear(3, 1)))) == ["1.weight"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: torch.compile(m, backend="eager"),
        Wrapper,
        nn.DataParallel,
        lambda m: torch.compile(Wrapper(m), backend="eager"),
        lambda m: Wrapper(torch.compile(m, backend="eager")),
    ],
    ids=["compile", "wrapper", "DataParallel", "compile of wrapper", "wrapper of compile"],
)
def test_prefixes_of_wrappers_are_no_part_of_a_name(wrap):
    model = net()
    wrapped = wrap(model)
    assert list(weights(wrapped)) == WEIGHTS
    assert matching(wrapped, "4.weight")["4.weight"] is model[4].weight
    assert list(of_type(wrapped, nn.Conv2d)) == ["0.weight", "0.bias"]


def test_prefixes_are_stripped_inside_a_model_but_names_that_resemble_them_stay():
    inner = nn.ModuleDict({"encoder": torch.compile(nn.Linear(2, 2), backend="eager"), "my_orig_mod": nn.Linear(2, 2)})
    assert list(weights(inner)) == ["encoder.weight", "my_orig_mod.weight"]
    assert list(weights(nn.ModuleDict({"submodule": nn.Linear(2, 2)}))) == ["submodule.weight"]


def test_a_string_is_a_shell_pattern_of_the_whole_name():
    model = net()
    assert list(matching(model, "*.bias")) == ["0.bias", "1.bias", "4.bias", "5.bias"]
    assert list(matching(model, "[45].weight")) == ["4.weight", "5.weight"]
    assert list(matching(nn.Sequential(model), "*weight")) == ["0." + n for n in ["0.weight", "1.weight", *WEIGHTS[1:]]]
    with pytest.raises(ValueError, match="weight"):
        matching(model, "weight")  # no part of a name
    with pytest.raises(ValueError, match="WEIGHT"):
        matching(model, "4.WEIGHT")  # case counts


def test_a_compiled_pattern_must_match_the_whole_name():
    assert list(matching(net(), re.compile(r"[45]\.weight"))) == ["4.weight", "5.weight"]
    assert list(matching(net(), re.compile(r".*bias"), exclude=re.compile("[01].*"))) == ["4.bias", "5.bias"]
    with pytest.raises(ValueError, match="near names"):
        matching(net(), re.compile("weight"))


def test_exclude_takes_names_away():
    assert list(matching(net(), "*.weight", exclude="1.*")) == WEIGHTS
    assert list(matching(net(), "*.weight", exclude=re.compile(r"[15]\..*"))) == ["0.weight", "4.weight"]
    with pytest.raises(ValueError, match="exclude"):
        matching(net(), "*.weight", exclude="*")


def test_of_type_takes_all_parameters_of_all_types_and_subclasses():
    class MyLinear(nn.Linear):
        pass

    model = nn.Sequential(nn.Conv2d(1, 1, 1), MyLinear(2, 2), nn.LayerNorm(2))
    assert list(of_type(model, nn.Linear)) == ["1.weight", "1.bias"]
    assert list(of_type(model, nn.Conv2d, nn.LayerNorm)) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_selections_join_and_hold_the_models_own_parameters():
    model = net()
    joined = weights(model) | matching(model, "*.bias", exclude="1.*")
    assert list(joined) == [*WEIGHTS, "0.bias", "4.bias", "5.bias"]
    assert {id(p) for p in joined.values()} <= {id(p) for p in model.parameters()}


def test_names_near_a_mistake_are_listed():
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"encodr\.weight.*encoder\.weight") as error:
        matching(model, "encodr.weight")
    assert "ModuleDict" in str(error.value)
    with pytest.raises(ValueError, match=r"Conv2d.*Linear"):
        of_type(model, nn.Conv2d)


@pytest.mark.parametrize(
    "model", [nn.LayerNorm(3), nn.Embedding(3, 2), nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)]
)
def test_nothing_to_penalise_is_an_error_with_a_remedy(model):
    for act in (weights, L1(0.1)):
        with pytest.raises(ValueError, match=rf"{type(model).__name__}.*matching.*of_type"):
            act(model)
