"""The fine-tuning driver on small graphs: what it trains on, keeps, reports and refuses."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool

from gnnquant import FineTuneError, GnnQuantError, InputError, Smoothness, SmoothPropagation
from gnnquant.config import QuantSpec
from gnnquant.finetuning import finetune
from gnnquant.quantizers import Quantizer
from gnnquant.quantizers.calibration import is_calibrated

CLASSES = 3


class Gcn(nn.Module):
    """A two-layer model with dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = GCNConv(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.second = GCNConv(16, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.norm(self.first(x, edge_index)).relu()
        return self.second(F.dropout(x, 0.2, self.training), edge_index)


class Quantized(nn.Module):
    """A linear model with a quantizer at its input."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizer = Quantizer(QuantSpec(bits=4, granularity="tensor"))
        self.linear = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = self.quantizer(x)
        return self.linear(codes * scale)


class GraphClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(8, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        return global_mean_pool(self.conv(x, edge_index), batch)


def seeded(model: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return model()


def graph(nodes: int = 90, seed: int = 0) -> Data:
    """Three communities whose features give the class away, under noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(nodes) % CLASSES
    x = torch.randn(nodes, 8, generator=generator)
    x[torch.arange(nodes), y] += 1.5
    source = torch.randint(nodes, (nodes * 4,), generator=generator)
    hop = CLASSES * torch.randint(nodes // CLASSES, source.shape, generator=generator)
    part = torch.randint(3, (nodes,), generator=generator)
    return Data(
        x=x,
        y=y,
        edge_index=torch.stack([source, (source + hop) % nodes]),
        train_mask=part == 0,
        val_mask=part == 1,
        test_mask=part == 2,
    )


def small_graphs(count: int = 12) -> list[Data]:
    graphs = []
    for index in range(count):
        data = graph(12, seed=index)
        data.x[:, index % CLASSES] += 2
        graphs.append(Data(x=data.x, edge_index=data.edge_index, y=torch.tensor([index % CLASSES])))
    return graphs


def accuracy(model: nn.Module, data: Data, mask: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(1) == data.y
    return float(right[mask].float().mean())


def test_training_improves_and_keeps_the_best_validation_state() -> None:
    model, data = seeded(Gcn), graph()
    before = accuracy(model, data, data.val_mask)
    result = finetune(model, data, epochs=30, lr=0.02, seed=1, progress=False)
    assert not model.training
    assert len(result.history) == 30
    assert [record.epoch for record in result.history] == list(range(1, 31))
    assert result.best_metric == max(record.val_metric for record in result.history)
    assert accuracy(model, data, data.val_mask) == pytest.approx(result.best_metric)
    assert result.best_metric > before
    assert not result.interrupted


def test_learning_rates_fall_by_a_cosine() -> None:
    result = finetune(seeded(Gcn), graph(), epochs=4, lr=0.02, range_lr=0.1, progress=False)
    for record in result.history:
        expected = (1 + math.cos(math.pi * (record.epoch - 1) / 4)) / 2
        assert record.lr == pytest.approx(0.02 * expected)
        assert record.range_lr == pytest.approx(0.1 * expected)


def test_the_state_before_training_is_kept_when_training_only_harms() -> None:
    model, data = seeded(Gcn), graph()
    finetune(model, data, epochs=40, lr=0.02, seed=1, progress=False)
    state = copy.deepcopy(model.state_dict())
    wrong = data.clone()
    wrong.y = torch.where(data.train_mask, (data.y + 1) % CLASSES, data.y)
    result = finetune(model, wrong, epochs=5, lr=0.2, seed=1, progress=False)
    assert result.best_epoch == 0
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(7)
    expected_draw = torch.rand(1)
    states = []
    for _ in range(2):
        model = seeded(Gcn)
        torch.manual_seed(7)
        finetune(model, graph(), epochs=5, seed=3, progress=False)
        torch.testing.assert_close(torch.rand(1), expected_draw, rtol=0, atol=0)
        states.append(model.state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_test_labels_are_never_read() -> None:
    poisoned = graph()
    poisoned.y = torch.where(poisoned.test_mask, 10**6, poisoned.y)
    results = [
        finetune(seeded(Gcn), data, epochs=5, seed=3, progress=False, teacher=seeded(Gcn))
        for data in (graph(), poisoned)
    ]
    assert results[0] == results[1]


def test_a_teacher_alone_teaches_every_node() -> None:
    """Without the labels' loss the model learns the teacher's classes, also where no mask is set."""
    data = graph()
    shifted = F.one_hot((data.y + 1) % CLASSES, CLASSES).float() * 8
    model = seeded(Gcn)
    finetune(
        model, data, epochs=60, lr=0.02, teacher=shifted, label_weight=0.0, seed=0, progress=False,
        val_data=Data(x=data.x, edge_index=data.edge_index, y=(data.y + 1) % CLASSES),
    )  # fmt: skip
    model.eval()
    agreement = (model(data.x, data.edge_index).argmax(1) == shifted.argmax(1))[data.test_mask]
    assert float(agreement.float().mean()) > 0.8


def test_a_teacher_module_equals_its_scores() -> None:
    teacher, data = seeded(Gcn).train(), graph()
    with torch.no_grad():
        scores = copy.deepcopy(teacher).eval()(data.x, data.edge_index)
    losses = []
    for given in (teacher, scores, scores.log_softmax(1)):
        model = seeded(Gcn)
        result = finetune(model, data, epochs=2, teacher=given, seed=1, progress=False)
        losses.append([record.loss for record in result.history])
    assert teacher.training
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)


def test_the_loss_is_the_weighted_sum() -> None:
    model, data = seeded(Gcn), graph()
    frozen = copy.deepcopy(model).train()
    teacher = torch.randn(90, CLASSES)
    torch.manual_seed(5)
    output = frozen(data.x, data.edge_index)
    labels = F.cross_entropy(output[data.train_mask], data.y[data.train_mask])
    soft = teacher.softmax(1)
    divergence = (soft * (soft.log() - output.log_softmax(1))).sum(1).mean()
    result = finetune(model, data, epochs=1, teacher=teacher, seed=5, progress=False)
    assert result.history[0].loss == pytest.approx(float((0.1 * labels + divergence).detach()), rel=1e-5)


def test_own_loss_sees_the_mask_and_is_the_metric() -> None:
    data, masks = graph(), []

    def loss(output: Tensor, data: Data, mask: Tensor) -> Tensor:
        masks.append(mask)
        return F.multi_margin_loss(output[mask], data.y[mask])

    model = seeded(Gcn)
    result = finetune(model, data, epochs=3, loss=loss, seed=0, progress=False)
    assert any(torch.equal(mask, data.train_mask) for mask in masks)
    assert any(torch.equal(mask, data.val_mask) for mask in masks)
    assert result.best_metric == max(record.val_metric for record in result.history)
    model.eval()
    margin = loss(model(data.x, data.edge_index), data, data.val_mask)
    assert result.best_metric == pytest.approx(-float(margin.detach()))


def test_a_loader_of_graphs_trains_on_every_graph_and_keeps_the_last_epoch() -> None:
    loader = DataLoader(small_graphs(), batch_size=5, shuffle=True)
    result = finetune(seeded(GraphClassifier), loader, epochs=8, lr=0.05, seed=0, progress=False)
    assert result.best_epoch == 8
    assert result.best_metric is None
    assert result.history[-1].loss < result.history[0].loss


def test_validation_graphs_choose_the_epoch() -> None:
    loader = DataLoader(small_graphs(), batch_size=5, shuffle=True)
    model = seeded(GraphClassifier)
    result = finetune(
        model, loader, epochs=8, lr=0.05, seed=0, progress=False,
        val_data=DataLoader(small_graphs(6), batch_size=4), teacher=seeded(GraphClassifier),
    )  # fmt: skip
    assert result.best_metric == max(record.val_metric for record in result.history)


def test_of_a_neighbour_loader_batch_only_the_seed_nodes_count() -> None:
    data = graph()
    batch = Data(x=data.x, edge_index=data.edge_index, y=data.y, batch_size=10, n_id=torch.arange(90))
    masks = []

    def loss(output: Tensor, data: Data, mask: Tensor) -> Tensor:
        masks.append(mask)
        return F.cross_entropy(output[mask], data.y[mask])

    finetune(seeded(Gcn), [batch], epochs=1, loss=loss, progress=False)
    assert masks[0].tolist() == [True] * 10 + [False] * 80


def test_quantizers_are_calibrated_first_and_their_ranges_learn_without_decay() -> None:
    model, data = seeded(Quantized), graph()
    assert not is_calibrated(model)
    frozen = finetune(model, data, epochs=1, lr=0.0, range_lr=0.0, progress=False)
    assert is_calibrated(model)
    assert frozen.history[0].range_lr == 0
    calibrated = model.quantizer.log_scale.detach().clone()
    every_node = Data(x=data.x, y=data.y)
    finetune(model, [every_node], epochs=3, lr=0.0, range_lr=0.05, progress=False)
    assert not torch.equal(model.quantizer.log_scale, calibrated)


def _cross_entropy(output: Tensor, data: Data, mask: Tensor) -> Tensor:
    return F.cross_entropy(output[mask], data.y[mask])


def test_ctrl_c_keeps_the_best_so_far() -> None:
    model, data, calls = seeded(Gcn), graph(), []

    def loss(output: Tensor, data: Data, mask: Tensor) -> Tensor:
        calls.append(mask)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return _cross_entropy(output, data, mask)

    result = finetune(model, data, epochs=50, lr=0.02, loss=loss, seed=0, progress=False)
    assert result.interrupted
    assert not model.training
    assert 1 <= len(result.history) < 50
    model.eval()
    value = _cross_entropy(model(data.x, data.edge_index), data, data.val_mask)
    assert result.best_metric == pytest.approx(-float(value.detach()))


def test_a_loss_that_is_not_finite_names_the_epoch_and_restores_the_best() -> None:
    model, data, calls = seeded(Gcn), graph(), []

    def loss(output: Tensor, data: Data, mask: Tensor) -> Tensor:
        calls.append(mask)
        factor = float("nan") if len(calls) >= 6 else 1.0
        return factor * _cross_entropy(output, data, mask)

    with pytest.raises(FineTuneError, match=r"diverged in epoch 3.*lr=.*state of epoch \d is restored"):
        finetune(model, data, epochs=50, loss=loss, progress=False)
    assert not model.training
    assert all(bool(value.isfinite().all()) for value in model.parameters())


def test_infinite_gradients_are_noticed() -> None:
    model, data = seeded(Gcn), graph()

    def infinite_slope(output: Tensor, data: Data, mask: Tensor) -> Tensor:
        return (0 * output.sum()).sqrt()

    with pytest.raises(FineTuneError, match="a parameter is not finite"):
        finetune(model, data, epochs=3, progress=False, loss=infinite_slope)
    assert all(bool(value.isfinite().all()) for value in model.parameters())


def test_smoothness_of_propagation_layers_is_reported_each_epoch() -> None:
    class Smp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, CLASSES)
            self.propagation = SmoothPropagation(2)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.propagation(self.linear(x), edge_index)

    model = seeded(Smp)
    result = finetune(model, graph(), epochs=3, smoothness=Smoothness(bound=0.1), progress=False)
    for record in result.history:
        assert [report.layer for report in record.smoothness] == [
            "propagation.constraints.0",
            "propagation.constraints.1",
        ]
    first, last = result.history[0].smoothness[0], result.history[-1].smoothness[0]
    assert first.multiplier != last.multiplier


def test_smoothness_needs_a_traced_model() -> None:
    with pytest.raises(FineTuneError, match=r"gnnquant\.convert"):
        finetune(seeded(Gcn), graph(), smoothness=Smoothness(), progress=False)


def without(name: str) -> Data:
    data = graph()
    del data[name]
    return data


def with_value(**values: object) -> Data:
    data = graph()
    data.update(values)
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (without("train_mask"), "no train_mask"),
        (without("y"), "no labels y"),
        (with_value(train_mask=torch.zeros(90, dtype=torch.bool)), "train_mask chooses nothing"),
        (with_value(val_mask=torch.zeros(90, dtype=torch.bool)), "val_mask chooses nothing"),
        (with_value(train_mask=torch.ones(90, 10, dtype=torch.bool)), r"\[:, 0\]"),
        (with_value(train_mask=torch.ones(90, dtype=torch.int64)), "must be bool"),
        (with_value(train_mask=torch.ones(80, dtype=torch.bool)), r"shape \[90\]"),
        (with_value(y=torch.full((90,), 5)), "5 to 5, and the model scores 3"),
        (with_value(y=torch.full((90,), -1)), "-1 to -1"),
        (with_value(y=torch.rand(90, 3)), "integer labels y"),
        (with_value(y=torch.zeros(80, dtype=torch.int64)), "integer labels y"),
        ([], "no training example"),
        ([with_value(train_mask=torch.zeros(90, dtype=torch.bool))], "no training example"),
        (with_value(x=torch.full((90, 8), float("nan"))), "diverged in epoch 1: the loss is nan"),
    ],
)
def test_unusable_data_is_refused(data: Data, words: str) -> None:
    model = seeded(Gcn)
    with pytest.raises(FineTuneError, match=words):
        finetune(model, data, epochs=2, progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "at least 1"),
        ({"teacher": torch.ones(90, 5)}, r"teacher's scores have shape \[90, 5\]"),
        ({"inputs": {"x": "features"}}, "'features'"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(GnnQuantError, match=words):
        finetune(seeded(Gcn), graph(), progress=False, **options)


def test_scores_of_a_teacher_do_not_fit_a_loader() -> None:
    with pytest.raises(FineTuneError, match="pass the model"):
        finetune(seeded(Gcn), [graph()], teacher=torch.ones(90, 3), progress=False)


def test_a_generator_is_refused() -> None:
    with pytest.raises(InputError, match="only once"):
        finetune(seeded(Gcn), (item for item in [graph()]), progress=False)


def test_data_on_another_device_is_refused() -> None:
    with pytest.raises(FineTuneError, match=r"is on meta and the model on cpu.*data.to\('cpu'\)"):
        finetune(seeded(Gcn), graph().to("meta", "x"), progress=False)


def test_a_frozen_model_is_refused() -> None:
    model = seeded(Gcn).requires_grad_(False)
    with pytest.raises(FineTuneError, match="requires a gradient"):
        finetune(model, graph(), progress=False)
