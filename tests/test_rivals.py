"""Rival quantizers: each rule against an independent computation, and in a model that trains."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.data import Data

import gnnquant
from benchmarks.accuracy.rivals import (
    QUANTIZERS,
    RIVALS,
    DegreeQuant,
    NodeProtection,
    RivalQuantizer,
    install,
    skewness,
)
from gnnquant.config import QuantSpec
from gnnquant.demo_models import GCN
from gnnquant.quantizers import Quantizer, ops
from gnnquant.quantizers.calibration import is_calibrated, quantizers_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnnquant.converter import QuantizedModule

WITH_ZERO = [name for name in RIVALS if not name.endswith("-code")]
PAIRS = [(name, bits) for name, widths in RIVALS.items() for bits in widths]
NODES = 12


def make(name: str, bits: int, kind: str = "input", **options: object) -> RivalQuantizer:
    """A rival's quantizer by itself, in eval mode."""
    if name == "degree-quant":
        options = {"protection": NodeProtection(["x", "edge_index"], 0.0, 0.1), **options}
    return QUANTIZERS[name](Quantizer(QuantSpec(bits, "tensor")), kind, **options).eval()


def calibrated(quantizer: RivalQuantizer, *values: torch.Tensor) -> RivalQuantizer:
    quantizer.start_observing()
    for value in values:
        quantizer(value)
    assert quantizer.stop_observing()
    return quantizer


def values_of(quantizer: RivalQuantizer, value: torch.Tensor) -> np.ndarray:
    return ops.dequantize(*quantizer(value)).detach().numpy()


def sample(signed: bool = True, seed: int = 0) -> torch.Tensor:
    """[40, 25], a little skewed."""
    x = torch.randn(40, 25, generator=torch.Generator().manual_seed(seed))
    return x + 0.1 * x.square() if signed else x.relu()


def affine(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """The values of the affine grid of [low, high], in float64."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (2**bits - 1)
    zero = np.rint(-low / step)
    return (np.clip(np.rint(x / step + zero), 0, 2**bits - 1) - zero) * step


def truncated(x: np.ndarray, low: float, high: float, shift: float, exact_zero: bool) -> np.ndarray:
    """The values of bitwise truncation, in float64."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    zero = np.rint(-low / step)
    if exact_zero:
        zero = 85 * np.rint(zero / 85)
    codes = np.rint((np.clip(np.rint(x / step + zero), 0, 255) + shift) / 85) * 85
    return ((np.clip(codes, 0, 255) if exact_zero else codes) - zero) * step


def searched(x: np.ndarray, bits: int, smallest: float, rule: object) -> np.ndarray:
    """``rule(x, low, high)`` of the range whose alpha the reference code would find."""
    candidates = np.arange(1, 11) / 10 if bits == 2 else np.arange(1, 51) / 50
    found = [rule(x, a * x.min(), a * x.max()) for a in candidates]
    alpha = candidates[np.argmin([np.abs(value - x).mean() for value in found])]
    alpha = alpha + 0.1 if alpha < smallest - 1e-9 else alpha
    return rule(x, alpha * x.min(), alpha * x.max())


def skew(x: np.ndarray) -> float:
    centred = x - x.mean()
    return (centred**3).mean() / (centred**2).mean() ** 1.5


def expected(name: str, bits: int, x: np.ndarray) -> np.ndarray:
    """What the rival makes of ``x``, on which it was calibrated."""
    if name == "minmax":
        return affine(x, x.min(), x.max(), bits)
    if name == "degree-quant":
        tail = 0.01 if bits == 2 else 0.001
        ordered = np.sort(x.ravel())
        return affine(x, ordered[int(x.size * tail) - 1], ordered[int(x.size * (1 - tail)) - 1], bits)
    if name.startswith("lsq"):
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if x.min() < 0 else (0, 2**bits - 1)
        steps = [2 * np.abs(x).mean() / np.sqrt(high)]
        if name == "lsq-search":
            steps = [i / 20 * np.abs(x).max() / high for i in range(1, 21)]
        found = [np.clip(np.rint(x / step), low, high) * step for step in steps]
        return min(found, key=lambda value: ((value - x) ** 2).sum())
    if name == "paper":
        return searched(x, bits, 0.1, lambda v, low, high: affine(v, low, high, bits))
    shift = {"bt": 0, "bt-code": 0, "bt-star": 21 * round(skew(x)), "bt-star-code": round(skew(x))}[name]
    return searched(
        x,
        bits,
        0.5 if name == "bt-star-code" else 0.1,
        lambda v, low, high: truncated(v, low, high, min(max(shift, -42), 42), name in WITH_ZERO),
    )


@pytest.mark.parametrize(("name", "bits"), PAIRS)
@pytest.mark.parametrize("signed", [True, False])
def test_values_are_those_of_the_rule(name: str, bits: int, signed: bool) -> None:
    x = sample(signed)
    found = values_of(calibrated(make(name, bits), x), x)
    wanted = expected(name, bits, x.double().numpy())
    step = np.diff(np.unique(wanted)).min()
    # Float32 may round a value in the very middle to the other side; a rule that is off moves many.
    assert (np.abs(found - wanted) > 1e-3 * step).sum() <= 2
    assert len(np.unique(found)) > 2


@pytest.mark.parametrize(("name", "bits"), PAIRS)
@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_few_integers(name: str, bits: int, signed: bool) -> None:
    """And other data than that of calibration stays within them."""
    x = sample(signed)
    codes, scale = calibrated(make(name, bits), x)(10 * sample(signed, seed=1))
    assert torch.equal(codes, codes.round())
    assert len(codes.unique()) <= 2**bits
    assert scale.dim() == 0


@pytest.mark.parametrize(("name", "bits"), [pair for pair in PAIRS if pair[0] in WITH_ZERO])
@pytest.mark.parametrize("signed", [True, False])
def test_zero_is_exact(name: str, bits: int, signed: bool) -> None:
    quantizer = calibrated(make(name, bits), sample(signed))
    assert values_of(quantizer, torch.zeros(3, 3)).tolist() == np.zeros((3, 3)).tolist()


def test_the_reference_code_of_bt_has_no_zero_for_signed_data() -> None:
    """Its four levels lie about 0: this is what it gains."""
    x = torch.linspace(-1, 1, 1001)[:, None]
    quantizer = calibrated(make("bt-code", 2), x)
    levels = np.unique(values_of(quantizer, x))
    step = np.diff(levels).mean()
    assert levels / step == pytest.approx([-1.5, -0.5, 0.5, 1.5], abs=0.01)
    assert np.unique(values_of(calibrated(make("bt-code", 2), x.abs()), torch.zeros(2, 2))) == [0]


def test_bt_with_an_exact_zero_is_the_affine_grid() -> None:
    """What its docstring says: 8 bits in between change nothing."""
    x = sample()
    quantizer = calibrated(make("bt", 2), x)
    alpha = float(quantizer.log_scale.detach().exp())
    step = alpha * float(x.max() - x.min()) / 3
    zero = round(-alpha * float(x.min()) / step)
    wanted = (torch.clamp((x / step + zero).round(), 0, 3) - zero) * step
    assert np.abs(values_of(quantizer, x) - wanted.numpy()).max() < 1e-5


def test_skewness_lowers_the_thresholds_of_bt_star() -> None:
    """A sparse tensor: BT rounds small values away, BT* does not."""
    x = torch.zeros(50, 20)
    x[0], x[1, :10] = 0.3, 1.0
    assert float(skewness(x)) == pytest.approx(skew(x.double().numpy()), rel=1e-5)
    plain, star = (make(name, 2) for name in ("bt", "bt-star"))
    for quantizer in (plain, star):
        calibrated(quantizer, x)
        quantizer.log_scale.data.zero_()
    small = torch.tensor([[0.1, 0.0, -0.1]])
    assert values_of(plain, small).tolist() == [[0, 0, 0]]
    assert values_of(star, small)[0].tolist() == pytest.approx([1 / 3, 0, 0], abs=1e-3)


@pytest.mark.parametrize("name", RIVALS)
def test_several_batches_of_calibration(name: str) -> None:
    """The state of one calibration does not enter the next."""
    x, y = sample(), sample(seed=1)
    once = calibrated(make(name, 2), x, y)
    twice = calibrated(calibrated(make(name, 2), 100 * x), x, y)
    assert values_of(once, x).tolist() == values_of(twice, x).tolist()
    twice.start_observing()
    twice(torch.full((2, 2), torch.nan))
    assert not twice.stop_observing()


def test_minmax_moves_by_its_momentum() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    quantizer = calibrated(make("minmax", 4, momentum=0.25), x)
    quantizer(5 * x)
    assert (float(quantizer.low), float(quantizer.high)) == (-1, 2), "moves in training only"
    quantizer.train()(5 * x)
    assert (float(quantizer.low), float(quantizer.high)) == (-2, 4)
    assert values_of(quantizer.eval(), torch.tensor([[9.0]])) == pytest.approx(4.0)


def test_minmax_is_pytorchs_fake_quantization() -> None:
    x = sample().requires_grad_()
    quantizer = calibrated(make("minmax", 4), x.detach() * 0.5)
    y = ops.dequantize(*quantizer(x))
    (own,) = torch.autograd.grad(y.square().sum(), x)
    zero = int(quantizer.zero2) // 2
    theirs = torch.fake_quantize_per_tensor_affine(x, float(quantizer.step), zero, 0, 15)
    (wanted,) = torch.autograd.grad(theirs.square().sum(), x)
    assert torch.allclose(y, theirs, atol=1e-5)
    # Theirs lets the gradient pass where rounding leads back into the grid.
    t = x.detach() / quantizer.step + zero
    clear = ((t > 0) & (t < 15)) | (t < -0.5) | (t > 15.5)
    assert (~clear).any()
    assert torch.allclose(own[clear], wanted[clear], atol=1e-5)
    assert (own == 0).any()


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("kind", ["weight", "message"])
def test_gradient_of_lsqs_step(bits: int, kind: str) -> None:
    x = sample().requires_grad_()
    quantizer = calibrated(make("lsq", bits, kind), x.detach())
    y = ops.dequantize(*quantizer(x))
    upstream = sample(seed=2)
    (y * upstream).sum().backward()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = float(quantizer.log_scale.detach().exp())
    t = x.detach().double().numpy() / step
    residual = np.where(t <= low, low, np.where(t >= high, high, np.rint(t) - t))
    count = x.numel() if kind == "weight" else x.size(1)
    of_step = (residual * upstream.numpy()).sum() / np.sqrt(count * high)
    assert float(quantizer.log_scale.grad) == pytest.approx(step * of_step, rel=1e-4)
    inside = (t >= low) & (t <= high)
    assert 0 < inside.sum() < inside.size
    assert x.grad.numpy() == pytest.approx(np.where(inside, upstream.numpy(), 0), abs=1e-5)


def test_lsq_keeps_a_range_frozen_that_no_gradient_reaches() -> None:
    replaced = Quantizer(QuantSpec(4, "tensor"))
    replaced.log_scale.requires_grad_(False)
    assert not QUANTIZERS["lsq"](replaced, "input").log_scale.requires_grad


@pytest.mark.parametrize("name", ["paper", "bt-code", "bt-star-code"])
def test_the_papers_range_does_not_learn(name: str) -> None:
    """And a clipped value still gets a gradient, unless its level lies outside of the range."""
    quantizer = calibrated(make(name, 2), torch.linspace(-1, 2, 301)[:, None])
    quantizer.log_scale.data.zero_()  # the whole range: step 1, zero point 1, or 85
    x = torch.tensor([[-5.0, 0.2, 5.0]], requires_grad=True)
    ops.dequantize(*quantizer(x)).sum().backward()
    assert quantizer.log_scale.grad is None
    assert x.grad.tolist()[0] == pytest.approx([1, 1, 1])
    quantizer = calibrated(make(name, 2), torch.linspace(-1, 1, 301)[:, None])
    quantizer.log_scale.data.zero_()  # zero point 1.5 is rounded to 2 (127.5 to 128): levels from -4/3
    x = torch.tensor([[-5.0, -1.2, 0.2, 5.0]], requires_grad=True)
    ops.dequantize(*quantizer(x)).sum().backward()
    assert x.grad.tolist()[0] == pytest.approx([0, 0, 1, 1])


@pytest.mark.parametrize("name", ["bt", "bt-star"])
def test_gradient_of_the_truncated_range(name: str) -> None:
    """Residual inside of the grid, its end outside, as for any scale."""
    x = sample().requires_grad_()
    quantizer = calibrated(make(name, 2), x.detach())
    y = ops.dequantize(*quantizer(x))
    upstream = sample(seed=2)
    (y * upstream).sum().backward()
    values, codes = x.detach().double().numpy(), y.detach().double().numpy()
    bottom, top = codes.min(), codes.max()
    inside = (values >= bottom) & (values <= top)
    wanted = (np.where(inside, codes - values, codes) * upstream.numpy()).sum()
    assert float(quantizer.log_scale.grad) == pytest.approx(wanted, rel=1e-3)
    assert 0 < inside.sum() < inside.size
    assert x.grad.numpy() == pytest.approx(np.where(inside, upstream.numpy(), 0), abs=1e-5)


def star(leaves: int = NODES - 1) -> Data:
    """Node 0 is reached from everywhere, node 1 from node 0, the others from nowhere."""
    generator = torch.Generator().manual_seed(0)
    source = torch.cat([torch.arange(1, leaves + 1), torch.zeros(1, dtype=torch.long)])
    target = torch.cat([torch.zeros(leaves, dtype=torch.long), torch.ones(1, dtype=torch.long)])
    nodes = torch.arange(leaves + 1)
    return Data(
        x=torch.rand(leaves + 1, 5, generator=generator),
        edge_index=torch.stack([source, target]),
        y=nodes % 3,
        train_mask=nodes < 6,
        val_mask=nodes >= 6,
    )


@pytest.fixture(scope="module")
def converted() -> QuantizedModule:
    torch.manual_seed(0)
    return gnnquant.convert(GCN(5, 3, hidden=5), bits=2)


@pytest.fixture
def q(converted: QuantizedModule) -> QuantizedModule:
    return copy.deepcopy(converted)


def test_protection_grows_with_the_degree() -> None:
    data = star()
    found = NodeProtection(["x", "edge_index"], 0.02, 0.5).probability(data.edge_index, NODES)
    wanted = [0.02 + 0.48 * rank / NODES for rank in [NODES, NODES - 1] + (NODES - 2) * [NODES - 2]]
    assert found.tolist() == pytest.approx(wanted)


def test_protected_rows_are_exact_in_training_only(q: QuantizedModule) -> None:
    data = star()
    install(q, "degree-quant", highest=0.9)
    gnnquant.calibrate(q, data)
    protection = q.conv1.lin.input_quantizer.protection
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, quantizer in quantizers_of(q).items():
        assert isinstance(quantizer, DegreeQuant)
        assert quantizer.protection is protection

        def hook(_m: nn.Module, args: tuple, out: tuple, name: str = name) -> None:
            seen[name] = args[0].detach(), ops.dequantize(*out).detach()

        quantizer.register_forward_hook(hook)
    torch.manual_seed(1)
    q.train()(data.x, data.edge_index)
    mask = protection.mask
    assert 0 < int(mask.sum()) < NODES
    by_node = {name: pair for name, pair in seen.items() if "weight" not in name}
    assert len(by_node) == 4
    for value, quantized in by_node.values():
        assert torch.allclose(quantized[mask], value[mask], rtol=1e-6, atol=0)
        assert len(quantized[~mask].unique()) <= 4
    assert all(len(quantized.unique()) <= 4 for name, (_, quantized) in seen.items() if name not in by_node)
    torch.manual_seed(1)
    q.eval()(data.x, data.edge_index)
    assert protection.mask is None
    assert all(len(quantized.unique()) <= 4 for _, quantized in seen.values())


def test_protected_rows_get_the_whole_gradient_and_move_no_range() -> None:
    quantizer = calibrated(make("degree-quant", 2, tail=0.0), 0.5 * sample()[3:]).train()
    for factor in (0.7, 0.1):
        quantizer(factor * sample()[3:])
    quantizer.protection.mask = torch.zeros(40, dtype=torch.bool)
    quantizer.protection.mask[:3] = True
    low, high = float(quantizer.low), float(quantizer.high)
    assert high == pytest.approx(0.7 * float(sample()[3:].max())), "ranges only grow"
    x = 0.7 * sample()
    x[:3] *= 100
    x.requires_grad_()
    ops.dequantize(*quantizer(x)).sum().backward()
    assert x.grad[:3].tolist() == pytest.approx(np.ones((3, 25)))
    assert (float(quantizer.low), float(quantizer.high)) == (low, high)
    assert len(quantizer.eval()(x).codes.unique()) == 4
    quantizer.protection.mask = None
    quantizer.train()(x.detach())
    assert float(quantizer.high) > 10 * high, "without protection the range follows"


def test_degree_quant_refuses_a_model_without_a_graph() -> None:
    q = gnnquant.convert(nn.Linear(4, 4), (torch.rand(6, 4),), bits=4)
    with pytest.raises(ValueError, match="edge_index"):
        install(q, "degree-quant")
    install(q, "minmax")


def parts(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, list[float]]]:
    for name, value in state.items():
        yield name, value.flatten().tolist()


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_fine_tunes(q: QuantizedModule, name: str) -> None:
    data = star()
    before = {path: quantizer.bits for path, quantizer in quantizers_of(q).items()}
    kinds = {site.name: (site.kind, site.bits) for site in q.sites.values()}
    teacher = GCN(5, 3, hidden=5).eval()
    assert install(q, name) is q
    found = quantizers_of(q)
    assert {path: quantizer.bits for path, quantizer in found.items()} == before
    assert all(type(quantizer) is QUANTIZERS[name] for quantizer in found.values())
    assert {site.name: (site.kind, site.bits) for site in q.sites.values()} == kinds
    assert all(site.granularity == "tensor" for site in q.sites.values())
    assert not is_calibrated(q)
    untouched = copy.deepcopy(q)
    weight = q.conv1.lin.weight.detach().clone()
    result = gnnquant.finetune(q, data, epochs=3, teacher=teacher, seed=0, progress=False)
    assert len(result.history) == 3
    assert is_calibrated(q)
    assert not is_calibrated(untouched)
    assert not q.training
    if result.best_epoch:
        assert not torch.equal(q.conv1.lin.weight, weight)
    scores = q(data.x, data.edge_index)

    again = copy.deepcopy(untouched)
    gnnquant.finetune(again, data, epochs=3, teacher=teacher, seed=0, progress=False)
    assert torch.equal(again(data.x, data.edge_index), scores)
    untouched.load_state_dict(q.state_dict())
    assert torch.equal(untouched.eval()(data.x, data.edge_index), scores)
    assert dict(parts(untouched.state_dict())) == dict(parts(q.state_dict()))
    assert str(q).count(" tensor ") == len(before)
    with pytest.raises(gnnquant.BackendError):
        gnnquant.compile(q)


def test_scales_are_gathered_with_rows(q: QuantizedModule) -> None:
    """A graph that was made for scales by row gets one of every row, all equal."""
    data = star()
    install(q, "minmax")
    gnnquant.calibrate(q, data)
    _, scale = q.conv1.lin.input_quantizer(data.x)
    assert scale.shape == (NODES, 1)
    assert len(scale.unique()) == 1


def test_the_model_computes_with_the_rivals_values(q: QuantizedModule) -> None:
    """A GCN by hand from dequantized values, but for the 8-bit edge weights."""
    data = star()
    install(q, "lsq")
    gnnquant.calibrate(q, data)

    def value(path: str, x: torch.Tensor) -> torch.Tensor:
        return ops.dequantize(*q.get_submodule(f"{path}_quantizer")(x))

    links = torch.zeros(NODES, NODES)
    links[data.edge_index[1], data.edge_index[0]] = 1
    links += torch.eye(NODES)
    root = links.sum(1).rsqrt()
    links = root[:, None] * links * root
    h = data.x
    with torch.no_grad():
        for conv, site in (("conv1", "conv1.lin.input"), ("conv2", "conv1.update")):
            layer = q.get_submodule(conv)
            h = value(site, h) @ value(f"{conv}.lin.weight", layer.lin.weight).T
            h = links @ value(f"{conv}.message", h) + layer.bias
            h = h.relu() if conv == "conv1" else h
        found = q.eval()(data.x, data.edge_index)
    assert torch.allclose(found, h, atol=0.02 * float(h.abs().max()))


def test_install_refuses(q: QuantizedModule) -> None:
    with pytest.raises(ValueError, match="lsq"):
        install(q, "nobody")
    with pytest.raises(TypeError):
        install(q, "lsq", momentum=0.1)
    assert not any(isinstance(quantizer, RivalQuantizer) for quantizer in quantizers_of(q).values())
    install(q, "lsq")
    with pytest.raises(ValueError, match="convert"):
        install(q, "minmax")
    with pytest.raises(ValueError, match="convert"):
        install(gnnquant.convert(GCN(5, 3), bits=32), "minmax")
    with pytest.raises(ValueError, match="bits"):
        install(gnnquant.convert(GCN(5, 3), bits=4), "bt")
