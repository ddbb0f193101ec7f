"""The own function of a LoRA layer against peft's own forward, on equal weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from peftlab.speed.layers import replace_forward
from peftlab.speed.lora_linear import LoraLinear, LoraLinears, forward
from tests.speed.layers import FORMATS, N_IN, assert_equal, fast_copy, function_of, halve, lora_layer, n_in, results

INPUTS = {
    "rows of tokens": lambda n: torch.randn(2, 5, n),
    "rows": lambda n: torch.randn(7, n),
    "one vector": lambda n: torch.randn(n),
    "not contiguous": lambda n: torch.randn(5, n, 2).permute(2, 0, 1),
    "one row for all": lambda n: torch.randn(1, 1, n).expand(2, 5, n),
    "none": lambda n: torch.randn(0, 5, n),
}


def used(layer: nn.Module, *args: torch.Tensor, **kwargs: object) -> bool:
    """Whether the layer's output was made by the own function."""
    return type(function_of(layer(*args, **kwargs))).__name__ == f"{LoraLinear.__name__}Backward"


@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize("kind", FORMATS)
def test_outputs_and_gradients_are_pefts(kind, shape):
    if (kind, shape) == ("transposed", "not contiguous"):
        pytest.skip("transformers' Conv1D takes no such input")
    plain = lora_layer(kind)
    x = INPUTS[shape](n_in(kind))
    fast = fast_copy(plain)
    assert used(fast, x)
    assert_equal(results(plain, x), results(fast, x))


@pytest.mark.parametrize("kind", FORMATS)
def test_dropout_drops_what_peft_drops_from_the_same_seed(kind):
    plain, x = lora_layer(kind, lora_dropout=0.3), torch.randn(2, 5, n_in(kind))
    x[0, 0, :8] = 0  # a zero that dropout keeps has a gradient
    fast = fast_copy(plain)
    assert used(fast, x)
    assert_equal(results(plain, x), results(fast, x))
    assert_equal(results(plain.eval(), x), results(fast.eval(), x))


@pytest.mark.parametrize("kind", ["dense", "nf4"])
def test_dropout_of_an_input_whose_tokens_lie_apart_in_memory_is_pefts(kind):
    """Mamba's layers transpose their input; torch drops in the order of memory."""
    plain, x = lora_layer(kind, lora_dropout=0.3), torch.randn(2, n_in(kind), 5).transpose(1, 2)
    fast = fast_copy(plain)
    assert not x.is_contiguous() and used(fast, x)
    assert_equal(results(plain, x), results(fast, x))


def test_dropout_of_half_precision_under_autocast_is_pefts():
    plain, x = lora_layer(lora_dropout=0.3), torch.randn(2, 64, N_IN)
    assert_equal(
        results(plain, x, autocast=torch.bfloat16), results(fast_copy(plain), x, autocast=torch.bfloat16), 0.02
    )


def test_rslora_is_only_another_scale():
    plain, x = lora_layer(use_rslora=True), torch.randn(3, N_IN)
    assert_equal(results(plain, x), results(fast_copy(plain), x))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_differs_by_its_own_rounding(kind, autocast):
    plain, x = lora_layer(kind), torch.randn(4, 6, n_in(kind))
    assert_equal(results(plain, x, autocast=autocast), results(fast_copy(plain), x, autocast=autocast), 0.01)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_16_bit_base_differs_by_its_own_rounding(kind, autocast):
    plain, x = lora_layer(kind, torch.bfloat16), torch.randn(4, 6, n_in(kind), dtype=torch.bfloat16)
    fast = fast_copy(plain)
    assert used(fast, x)
    assert plain.lora_A.default.weight.dtype == torch.float32
    assert_equal(results(plain, x, autocast=autocast), results(fast, x, autocast=autocast), 0.01)


@pytest.mark.parametrize("kind", ["dense", "transposed"])
@pytest.mark.parametrize(
    "trains", ["base_layer.weight", "base_layer.bias", "lora_A.default.weight", "lora_B.default.weight", "none", "all"]
)
def test_whatever_trains_has_pefts_gradient_and_nothing_else_has_one(kind, trains):
    plain, x = lora_layer(kind), torch.randn(2, 5, N_IN)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(trains == "all" or name == trains)
    assert_equal(results(plain, x), results(fast_copy(plain), x))


@pytest.mark.parametrize("kind", ["dense", "nf4"])
def test_an_input_without_gradient_gets_none(kind):
    plain, x = lora_layer(kind), torch.randn(2, 5, N_IN)
    fast = fast_copy(plain)
    for layer in (plain, fast):
        layer(x).square().sum().backward()
    for left, right in zip(plain.parameters(), fast.parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None)
        if left.grad is not None and right.grad is not None:
            assert_equal({"gradient": left.grad}, {"gradient": right.grad})


def test_two_uses_in_one_graph_add_their_gradients():
    plain, x = lora_layer(), torch.randn(2, 5, N_IN)
    assert_equal(results(plain, x, 2 * x), results(fast_copy(plain), x, 2 * x))


def test_layers_that_share_an_input_save_it_once():
    layers = [fast_copy(lora_layer(r=1)) for _ in range(3)]
    x = torch.randn(2, 5, N_IN, requires_grad=True)
    saved: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for layer in layers for p in layer.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
        outputs = [layer(x) for layer in layers]
    low = 3 * 10 * 4  # each layer's rows, of rank 1
    assert sum(saved.values()) == x.numel() * 4 + low
    del outputs


def test_a_16_bit_input_is_saved_in_its_own_type():
    fast = fast_copy(lora_layer("dense", torch.bfloat16, r=1))
    x = torch.randn(2, 5, N_IN, dtype=torch.bfloat16, requires_grad=True)
    y = fast(x)
    assert [one.dtype for one in function_of(y).saved_tensors if one is not None and one.shape == x.shape] == [x.dtype]


def test_nothing_is_saved_where_only_the_input_has_a_gradient():
    fast = fast_copy(lora_layer()).requires_grad_(False)
    y = fast(torch.randn(2, 5, N_IN, requires_grad=True))
    parameters = {id(p) for p in fast.parameters()}
    assert all(one is None or id(one) in parameters for one in function_of(y).saved_tensors)


@pytest.mark.parametrize(
    "case",
    [
        "no gradients",
        "DoRA",
        "a bias of LoRA's own",
        "two adapters",
        "a hook on the base",
        "a hook on A",
        "a hook on every module",
        "adapter names",
    ],
)
def test_what_is_not_ours_is_pefts(case):
    x = torch.randn(2, 5, N_IN, requires_grad=True)
    own = {"DoRA": {"use_dora": True}, "a bias of LoRA's own": {"lora_bias": True}}.get(case, {})
    plain, kwargs = lora_layer(**own), {}
    if case == "two adapters":
        plain.update_layer("second", 2, 3, plain_config())
        plain.set_adapter(["default", "second"])
    fast = copy.deepcopy(plain)
    replace_forward(fast, forward)
    if case == "a hook on the base":
        fast.base_layer.register_forward_hook(lambda *_: None)
    if case == "a hook on A":
        fast.lora_A.default.register_forward_hook(lambda *_: None)
    if case == "adapter names":
        kwargs = {"adapter_names": ["default", "__base__"]}
    every = nn.modules.module.register_module_forward_hook(lambda *_: None)
    if case != "a hook on every module":
        every.remove()
    with torch.set_grad_enabled(case != "no gradients"):
        assert not used(fast, x, **kwargs)
        assert torch.equal(fast(x, **kwargs), plain(x, **kwargs))
    every.remove()


@pytest.mark.parametrize("name", ["base_layer", "lora_A.default", "lora_B.default", "lora_dropout.default"])
def test_a_part_that_someone_else_computes_is_theirs(name):
    plain, x = lora_layer(lora_dropout=0.3), torch.randn(2, 5, N_IN)
    fast, replaced = fast_copy(plain), copy.deepcopy(plain)
    for layer in (plain, fast, replaced):
        halve(layer, name)
    assert not used(fast, x)
    assert_equal(results(plain, x), results(fast, x))
    assert LoraLinears().why_not(replaced).endswith("a hook")


def plain_config():
    from peft import LoraConfig

    return LoraConfig(r=2, lora_alpha=3)


def test_a_disabled_adapter_adds_nothing_and_has_no_gradient():
    plain, x = lora_layer(), torch.randn(2, 5, N_IN)
    fast = fast_copy(plain)
    for layer in (plain, fast):
        layer.enable_adapters(False)
    assert_equal(results(plain, x), results(fast, x))


def test_a_merged_layer_is_its_base():
    plain, x = lora_layer(), torch.randn(2, 5, N_IN)
    fast = fast_copy(plain)
    for layer in (plain, fast):
        layer.merge()
    assert_equal(results(plain, x), results(fast, x))


def test_a_scale_changed_later_counts():
    plain, x = lora_layer(), torch.randn(2, 5, N_IN)
    fast = fast_copy(plain)
    for layer in (plain, fast):
        layer.scale_layer(3.0)
    assert_equal(results(plain, x), results(fast, x))


def test_a_weight_changed_before_the_backward_pass_is_an_error():
    fast = fast_copy(lora_layer())
    y = fast(torch.randn(2, N_IN, requires_grad=True))
    with torch.no_grad():
        fast.lora_B.default.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_derivative_is_an_error_and_not_a_wrong_number():
    fast, x = fast_copy(lora_layer()), torch.randn(2, N_IN, requires_grad=True)
    (first,) = torch.autograd.grad(fast(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_a_layer_computed_again_by_checkpointing_has_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    plain, x = lora_layer(lora_dropout=0.2), torch.randn(2, 5, N_IN)
    fast = fast_copy(plain)

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fast

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    found = {name.removeprefix("inner."): one for name, one in results(Recomputed(), x).items()}
    assert_equal(results(plain, x), found)


def test_a_copy_computes_with_its_own_weights():
    fast, x = fast_copy(lora_layer()), torch.randn(2, N_IN, requires_grad=True)
    other = copy.deepcopy(fast)
    with torch.no_grad():
        other.lora_B.default.weight.zero_()
    assert used(other, x)
    assert torch.equal(other(x), other.base_layer(x))
    assert not torch.equal(fast(x), other(x))


def test_a_pickled_layer_is_plain():
    fast, x = fast_copy(lora_layer()), torch.randn(2, N_IN, requires_grad=True)
    again = pickle.loads(pickle.dumps(fast))
    assert not used(again, x)
    torch.testing.assert_close(again(x), fast(x))


def test_a_restored_layer_is_plain():
    fast, x = fast_copy(lora_layer()), torch.randn(2, N_IN, requires_grad=True)
    assert used(fast, x)
    LoraLinears().remove(fast)
    assert not used(fast, x)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_model_may_add_to_the_output_in_place(kind):
    """As layers do that add a shared expert to the routed ones."""
    layer, x = fast_copy(lora_layer(kind)), torch.randn(2, 3, n_in(kind), requires_grad=True)
    output = layer(x)
    plain = output + 1.0
    output += 1.0
    assert torch.equal(output, plain)
    output.sum().backward()
    assert x.grad is not None
