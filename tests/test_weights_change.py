"""However the weights of a module change, its next call uses them as they are then.

Every change is made to a module of this package and to torch.nn's, after both have been called, and
both are called again: same results, same gradients.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fused_rnn
from cases import assert_close, flatten

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
LAYERS = NAMES[:3]
F64 = torch.float64
TOLERANCE = 1e-10

old_weight_norm_says_so = pytest.mark.filterwarnings(
    "ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning"
)


def weight_of(module: nn.Module, kind: str = "weight_hh") -> str:
    """The name of a parameter of a layer or a cell."""
    return kind if isinstance(module, nn.RNNCellBase) else f"{kind}_l0"


def input_for(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    shape = (3, 4) if name.endswith("Cell") else (5, 3, 4)
    return torch.randn(shape, generator=generator, dtype=F64)


def call(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Results of a call with states that are not zero: those hide the recurrent weights of a
    cell."""
    inner: Any = getattr(module, "module", module)
    inner = getattr(inner, "layer", inner)
    states = [torch.full((3, 6), 0.5, dtype=F64), torch.full((3, 6), -0.25, dtype=F64)]
    if x.dim() == 3:
        blocks = inner.num_layers * (2 if inner.bidirectional else 1)
        states = [state.expand(blocks, 3, 6) for state in states]
    pair = isinstance(inner, (nn.LSTM, nn.LSTMCell))
    return flatten(module(x, tuple(states) if pair else states[0]))


def two_of(name: str, **more: Any) -> tuple[Any, Any]:
    """Ours and torch's with the same weights, both called before."""
    ours, theirs = (getattr(p, name)(4, 6, dtype=F64, **more) for p in (fused_rnn, nn))
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, input_for(name))
    return ours, theirs


def leaves_of(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> list[Tensor]:
    """Without and with a graph: results, and gradients to the input and every parameter. Returns
    the results."""
    found = []
    for module in (ours, theirs):
        torch.manual_seed(11)
        with torch.no_grad():
            results = call(module, x)
        leaf = x.clone().requires_grad_()
        results += call(module, leaf)
        total = sum(r.square().sum() for r in results)
        assert isinstance(total, Tensor)
        grads = torch.autograd.grad(total, [leaf, *leaves_of(module)], allow_unused=True)
        found.append([r.detach() for r in results] + list(grads))
    for index, (one, other) in enumerate(zip(*found, strict=True)):
        if other is None:
            assert one is None
        else:
            assert_close(str(index), one, other, TOLERANCE)
    return found[0][: len(results)]


def train(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        results = call(module, x)
        sum(r.square().sum() for r in results).backward()
        optimizer.step()


def optimizer_step(kind: str, **settings: Any) -> Callable[[Any, Tensor], None]:
    def change(module: Any, x: Tensor) -> None:
        optimizer = getattr(torch.optim, kind)(module.parameters(), lr=0.05, **settings)
        train(module, optimizer, x)

    return change


def data_written(module: Any, x: Tensor) -> None:
    weight = getattr(module, weight_of(module))
    weight.data.mul_(0.5)
    weight.data[0] = 0.25
    weight.detach().numpy()[1] = 0.75


def data_replaced(module: Any, x: Tensor) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data.flip(0).clone()


def data_replaced_by_a_view(module: Any, x: Tensor) -> None:
    weight = getattr(module, weight_of(module))
    weight.data = weight.data.mT.contiguous().mT * 2


def loaded(module: Any, x: Tensor) -> None:
    module.load_state_dict({key: value * -0.5 for key, value in module.state_dict().items()})


def loaded_by_assigning(module: Any, x: Tensor) -> None:
    state = {key: value * -0.5 for key, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def copied(module: Any, x: Tensor) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.flip(0))


def by_vector(module: Any, x: Tensor) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector.detach() * 1.5, module.parameters())


def initialized(module: Any, x: Tensor) -> None:
    nn.init.orthogonal_(getattr(module, weight_of(module)))


def parameter_replaced(module: Any, x: Tensor) -> None:
    name = weight_of(module)
    setattr(module, name, nn.Parameter(getattr(module, name).detach() * 3))


def parameter_registered(module: Any, x: Tensor) -> None:
    """By register_parameter, of which torch's list of weights hears nothing."""
    name = weight_of(module)
    module.register_parameter(name, nn.Parameter(getattr(module, name).detach() * 3))


def grad_switched_off(module: Any, x: Tensor) -> None:
    getattr(module, weight_of(module)).requires_grad_(False)


def shared(module: Any, x: Tensor) -> None:
    module.share_memory()
    module.get_parameter(weight_of(module)).data.mul_(2)


def there_and_back(module: Any, x: Tensor) -> None:
    module.float().double()


def swapped_there_and_back(module: Any, x: Tensor) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        module.float().double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


class Scaled(nn.Module):
    """Scales a weight by a learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), 1.5, dtype=F64))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gain


def parametrized(module: Any, x: Tensor) -> None:
    for kind in ("weight_ih", "weight_hh", "bias_hh"):
        parametrize.register_parametrization(module, weight_of(module, kind), Scaled())


def parametrized_by_dropout(module: Any, x: Tensor) -> None:
    """Weights dropped at random: each reading of the attribute draws numbers."""
    parametrize.register_parametrization(module, weight_of(module), nn.Dropout(0.5))


def parametrized_and_trained(module: Any, x: Tensor) -> None:
    parametrized(module, x)
    train(module, torch.optim.SGD(module.parameters(), lr=0.05), x)


def parametrized_and_assigned(module: Any, x: Tensor) -> None:
    name = weight_of(module)
    parametrizations.weight_norm(module, name)
    setattr(module, name, getattr(module, name).detach().flip(0) * 2)


def parametrization_removed(module: Any, x: Tensor) -> None:
    parametrized_and_trained(module, x)
    parametrize.remove_parametrizations(module, weight_of(module))


def weight_normed(module: Any, x: Tensor) -> None:
    for kind in ("weight_ih", "weight_hh"):
        nn.utils.weight_norm(module, weight_of(module, kind))
    train(module, torch.optim.SGD(module.parameters(), lr=0.05), x)


def weight_norm_removed(module: Any, x: Tensor) -> None:
    weight_normed(module, x)
    nn.utils.remove_weight_norm(module, weight_of(module))


def new_weight_normed(module: Any, x: Tensor) -> None:
    parametrizations.weight_norm(module, weight_of(module))
    train(module, torch.optim.SGD(module.parameters(), lr=0.05), x)


def spectral_normed(module: Any, x: Tensor) -> None:
    """The hook; its power iteration goes on at each call in training."""
    torch.manual_seed(3)
    nn.utils.spectral_norm(module, weight_of(module))
    train(module, torch.optim.SGD(module.parameters(), lr=0.05), x)


def new_spectral_normed(module: Any, x: Tensor) -> None:
    """The parametrization; its power iteration goes on at each reading of the weight."""
    torch.manual_seed(3)
    parametrizations.spectral_norm(module, weight_of(module))
    train(module, torch.optim.SGD(module.parameters(), lr=0.05), x)


def orthogonal(module: Any, x: Tensor) -> None:
    parametrizations.orthogonal(module, weight_of(module))


def pruned(module: Any, x: Tensor) -> None:
    prune.l1_unstructured(module, weight_of(module), amount=0.3)
    prune.ln_structured(module, weight_of(module, "weight_ih"), amount=2, n=2, dim=0)
    train(module, torch.optim.SGD(module.parameters(), lr=0.05), x)


def pruned_for_good(module: Any, x: Tensor) -> None:
    pruned(module, x)
    prune.remove(module, weight_of(module))
    prune.remove(module, weight_of(module, "weight_ih"))


CHANGES: tuple[Callable[[Any, Tensor], None], ...] = (
    data_written,
    data_replaced,
    data_replaced_by_a_view,
    loaded,
    loaded_by_assigning,
    copied,
    by_vector,
    initialized,
    parameter_replaced,
    parameter_registered,
    grad_switched_off,
    shared,
    there_and_back,
    swapped_there_and_back,
)


def check_change(name: str, change: Callable[[Any, Tensor], None], **more: Any) -> Any:
    """Changes both modules and compares, twice: a cache may be right once. Returns ours."""
    ours, theirs = two_of(name, **more)
    x = input_for(name)
    before = assert_same(ours, theirs, x)
    for module in (ours, theirs):
        torch.manual_seed(4)
        change(module, x)
    same = all(map(torch.equal, assert_same(ours, theirs, x), before))
    assert same == (change is grad_switched_off)
    assert_same(ours.eval(), theirs.eval(), x)
    assert fused_rnn.explain(ours, x).way == "fused"
    return ours


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change(change: Callable[[Any, Tensor], None], name: str) -> None:
    check_change(name, change)


OPTIMIZERS = [
    ("SGD", {"momentum": 0.9, "foreach": False}),
    ("SGD", {"foreach": True}),
    ("SGD", {"fused": True}),
    ("Adam", {"foreach": True}),
    ("AdamW", {"fused": True}),
    ("Adagrad", {"fused": True}),
    ("RMSprop", {}),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS, ids=str)
def test_optimizer(kind: str, settings: dict[str, Any], name: str) -> None:
    check_change(name, optimizer_step(kind, **settings))


@pytest.mark.parametrize("name", NAMES)
def test_lbfgs(name: str) -> None:
    """An optimizer that calls the model itself, several times a step."""

    def change(module: Any, x: Tensor) -> None:
        optimizer = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3)

        def closure() -> float:
            optimizer.zero_grad()
            total = sum(r.square().sum() for r in call(module, x))
            assert isinstance(total, Tensor)
            total.backward()
            return total.item()

        optimizer.step(closure)

    check_change(name, change)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change",
    [
        parametrized,
        parametrized_by_dropout,
        parametrized_and_trained,
        parametrized_and_assigned,
        parametrization_removed,
        orthogonal,
    ],
    ids=lambda change: change.__name__,
)
def test_parametrize(change: Callable[[Any, Tensor], None], name: str) -> None:
    check_change(name, change)


@pytest.mark.parametrize("name", NAMES)
def test_parametrize_cached(name: str) -> None:
    ours, theirs = two_of(name)
    for module in (ours, theirs):
        parametrized(module, input_for(name))
    with parametrize.cached():
        assert_same(ours, theirs, input_for(name))
    assert_same(ours, theirs, input_for(name))


@old_weight_norm_says_so
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change",
    [weight_normed, weight_norm_removed, new_weight_normed],
    ids=lambda change: change.__name__,
)
def test_weight_norm(change: Callable[[Any, Tensor], None], name: str) -> None:
    check_change(name, change)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change", [spectral_normed, new_spectral_normed], ids=lambda change: change.__name__
)
def test_spectral_norm(change: Callable[[Any, Tensor], None], name: str) -> None:
    check_change(name, change)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [pruned, pruned_for_good], ids=lambda change: change.__name__)
def test_prune(change: Callable[[Any, Tensor], None], name: str) -> None:
    check_change(name, change)


@pytest.mark.parametrize("name", LAYERS)
def test_tied_layers(name: str) -> None:
    """Two layers of a stack, and both directions, on the same parameters."""

    def tie(module: Any, x: Tensor) -> None:
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_hh_l0_reverse = module.weight_hh_l0
        module.bias_hh_l0 = module.bias_ih_l0
        train(module, torch.optim.SGD(module.parameters(), lr=0.05), x)

    ours = check_change(name, tie, num_layers=2, bidirectional=True)
    assert ours.weight_hh_l1 is ours.weight_hh_l0


@pytest.mark.parametrize("name", NAMES)
def test_tied_modules(name: str) -> None:
    """A change by one module's training is seen by the other."""
    models = [
        nn.ModuleList([getattr(package, name)(4, 6, dtype=F64) for _ in range(2)])
        for package in (fused_rnn, nn)
    ]
    models[1].load_state_dict(models[0].state_dict())
    x = input_for(name)
    for first, second in models:
        weight = weight_of(first)
        setattr(second, weight, getattr(first, weight))
        call(second, x)
        train(first, torch.optim.SGD(first.parameters(), lr=0.05), x)
    for one, other in zip(*models, strict=True):
        assert_same(one, other, x)


@pytest.mark.parametrize("averaging", [None, get_ema_multi_avg_fn(0.9)], ids=["mean", "ema"])
@pytest.mark.parametrize("name", NAMES)
def test_averaged_model(name: str, averaging: Any) -> None:
    x, averages = input_for(name), []
    for module in two_of(name):
        average = AveragedModel(module, multi_avg_fn=averaging)
        call(average, x)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for _ in range(3):
            train(module, optimizer, x, steps=1)
            average.update_parameters(module)
        averages.append(average)
    assert type(averages[0].module) is getattr(fused_rnn, name)
    assert_same(averages[0], averages[1], x)


@pytest.mark.parametrize("name", NAMES)
def test_swap_tensors(name: str) -> None:
    """torch's layers hold weak references to their weights, which forbids to swap them; cells and
    layers whose references are gone can."""
    ours, theirs = two_of(name)
    for module in (ours, theirs):
        weight = getattr(module, weight_of(module))
        torch.manual_seed(4)
        other = nn.Parameter(torch.randn_like(weight))
        if name in LAYERS:
            with pytest.raises(RuntimeError, match="weakref"):
                torch.utils.swap_tensors(weight, other)
            module._flat_weight_refs = [None] * len(module._flat_weights)
        torch.utils.swap_tensors(weight, other)
    assert_same(ours, theirs, input_for(name))


@pytest.mark.parametrize("name", NAMES)
def test_functional_call(name: str) -> None:
    """Other weights for one call, some or all, and the module's own again after it."""
    x = input_for(name)
    ours, theirs = two_of(name)
    names = [key for key, _ in ours.named_parameters()]
    for given in (names, names[:1], names[1:2]):
        found = []
        for module in (ours, theirs):
            leaves = {k: (module.get_parameter(k) * 2).detach().requires_grad_() for k in given}
            results = flatten(torch.func.functional_call(module, leaves, (x,)))
            total = sum(r.square().sum() for r in results)
            assert isinstance(total, Tensor)
            found.append([*results, *torch.autograd.grad(total, list(leaves.values()))])
        for one, other in zip(*found, strict=True):
            assert_close("functional", one.detach(), other.detach(), TOLERANCE)
        assert_same(ours, theirs, x)


@pytest.mark.parametrize("name", LAYERS)
def test_flat_weights_replaced(name: str) -> None:
    """torch's own list is what torch computes with, as long as no attribute has changed."""
    x = input_for(name)
    ours, theirs = two_of(name)
    for module in (ours, theirs):
        module._flat_weights = [w.detach() * 2 for w in module._flat_weights]
    assert_same(ours, theirs, x)
    assert fused_rnn.explain(ours, x).way == "fused"
    for module in (ours, theirs):
        module._flat_weights[1] = module._flat_weights[1] * 3
    assert_same(ours, theirs, x)
    for module in (ours, theirs):
        module._init_flat_weights()
        module.flatten_parameters()
    assert_same(ours, theirs, x)


@pytest.mark.parametrize("name", NAMES)
def test_deepcopy(name: str) -> None:
    """A copy has weights of its own: after a call, and of a parametrized module."""
    x = input_for(name)
    ours, theirs = two_of(name)
    for prepare in (lambda module: None, lambda module: parametrized(module, x)):
        prepare(ours), prepare(theirs)
        copies = copy.deepcopy(ours), copy.deepcopy(theirs)
        for module in copies:
            train(module, torch.optim.SGD(module.parameters(), lr=0.05), x)
        assert_same(*copies, x)
        assert_same(ours, theirs, x)


@pytest.mark.parametrize("name", NAMES)
def test_replicate(name: str) -> None:
    """What DataParallel does on one machine: replicas hold views of the weights as attributes, and
    gradients flow through those."""
    x = input_for(name)
    ours, theirs = two_of(name)
    found = []
    for module in (ours, theirs):
        replica = module._replicate_for_data_parallel()
        for key, parameter in module.named_parameters():
            setattr(replica, key, parameter * 2)
        results = call(replica, x)
        total = sum(r.square().sum() for r in results)
        assert isinstance(total, Tensor)
        found.append([*results, *torch.autograd.grad(total, list(module.parameters()))])
        assert not replica._parameters
    for one, other in zip(*found, strict=True):
        assert_close("replica", one.detach(), other.detach(), TOLERANCE)
    assert_same(ours, theirs, x)


@pytest.mark.parametrize("name", LAYERS)
def test_weight_drop(name: str) -> None:
    """Recurrent weights dropped before each call, the way of AWD-LSTM: a plain tensor is put in the
    parameter's place."""

    class WeightDrop(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer
            raw = layer.weight_hh_l0
            del layer._parameters["weight_hh_l0"]
            self.raw = nn.Parameter(raw.data)

        def forward(self, x: Tensor, hx: Any) -> Any:
            self.layer.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5, self.training)
            return self.layer(x, hx)

    ours, theirs = map(WeightDrop, two_of(name))
    x = input_for(name)
    for _ in range(2):
        assert_same(ours, theirs, x)
        ours.eval(), theirs.eval()
