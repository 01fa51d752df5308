"""Each term of the objective agrees with a float64 reference written from the equations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cmcr.connect import ConnectConfig, read_config, with_overrides
from cmcr.connect.connection.projectors import make_head, make_heads
from cmcr.connect.training.info_nce import info_nce
from cmcr.connect.training.loop import learning_rate
from cmcr.connect.training.objective import TERMS, attraction, objective, perturb
from cmcr.connect.training.schedule import scheduled
from cmcr.errors import UsageError

SECTION = {"via": "text", "spaces": ["clip", "clap"], "train": ["captions"], "memory": ["m"]}


def unit(generator: torch.Generator, count: int, dim: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def info_nce_reference(x: Tensor, y: Tensor, temperature: float) -> float:
    """-½ · mean over i of log softmax_j(x_i·y_j/τ)_i + log softmax_j(y_i·x_j/τ)_i."""
    scores = (x.double() @ y.double().T / temperature).numpy()
    total = 0.0
    for matrix in (scores, scores.T):
        for i, row in enumerate(matrix):
            peak = row.max()
            total += peak + math.log(np.exp(row - peak).sum()) - row[i]
    return total / (2 * len(scores))


def distance_reference(x: Tensor, y: Tensor, power: int) -> float:
    lengths = [math.dist(a, b) ** power for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    return sum(lengths) / len(lengths)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 30),
    dim=st.integers(2, 64),
    temperatures=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)),
    weights=st.tuples(st.floats(0, 2), st.floats(0, 2)),
    distance=st.sampled_from(["plain", "squared"]),
)
def test_the_objective_is_the_equations(
    seed: int,
    count: int,
    dim: int,
    temperatures: tuple[float, float],
    weights: tuple[float, float],
    distance: str,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    b1, a, b2, c = (unit(generator, count, dim) for _ in range(4))
    config = ConnectConfig.model_validate(
        SECTION
        | {
            "bridge_temperature": temperatures[0],
            "pseudo_temperature": temperatures[1],
            "intra_weight": weights[0],
            "pseudo_weight": weights[1],
            "distance": distance,
        }
    )
    power = 1 if distance == "plain" else 2
    bridge = info_nce_reference(b1, b2, temperatures[0])
    pseudo = info_nce_reference(a, c, temperatures[1])
    intra = (distance_reference(b1, a, power) + distance_reference(b2, c, power)) / 2
    loss = bridge + weights[1] * pseudo + weights[0] * intra
    terms = objective((b1, a), (b2, c), config)
    assert tuple(terms) == TERMS
    for name, expected in zip(TERMS, (loss, bridge, pseudo, 0, intra), strict=True):
        assert terms[name].item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def some_negatives_reference(x: Tensor, y: Tensor, temperature: float) -> float:
    """TextME's loss row by row: the mean of -log softmax of the pair among it and its negatives."""
    losses = []
    for i, row in enumerate(x.double().tolist()):
        cosines = [sum(map(float.__mul__, row, other)) for other in y.double().tolist()]
        own = cosines.pop(i)
        hard = [cosine for cosine in cosines if 0.1 * own <= cosine <= 0.9 * own]
        if hard:
            losses.append(math.log(sum(math.exp((c - own) / temperature) for c in [own, *hard])))
    return sum(losses) / max(len(losses), 1)


def test_textme_s_loss_is_its_equation() -> None:
    config = read_config(SECTION | {"method": "textme"})
    for seed, count in ((0, 2), (1, 3), (2, 40)):  # some rows without negatives, or all
        generator = torch.Generator().manual_seed(seed)
        x, y = (unit(generator, count, 4) for _ in range(2))
        terms = objective((x, None), (y, None), config)
        expected = some_negatives_reference(x, y, 0.07)
        assert terms["loss"].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert terms["inter_bridge"] == terms["loss"]
    assert expected > 0
    backwards = -torch.eye(3, requires_grad=True)  # no pair has negatives, and no gradient is NaN
    loss = objective((backwards, None), (torch.eye(3), None), config)["loss"]
    (gradient,) = torch.autograd.grad(loss, backwards)
    assert (loss.item(), gradient.abs().sum().item()) == (0, 0)


def test_textme_s_projector_is_its_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    (head, _) = make_heads(("gelu", "identity"), (6, 5), 5, seed=0)
    state = {name: value for name, value in head.state_dict().items() if value.is_floating_point()}
    for name, value in state.items():
        value.copy_(torch.rand(value.shape, generator=generator) + 0.1 * name.endswith("var"))
    w = {name: value.double().numpy() for name, value in state.items()}
    x = torch.randn(7, 6, generator=generator)

    def layer(rows: np.ndarray, name: str) -> np.ndarray:
        rows = rows @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"]
        spread = np.sqrt(w[f"{name}.1.running_var"] + 1e-5)
        rows = (rows - w[f"{name}.1.running_mean"]) / spread
        return rows * w[f"{name}.1.weight"] + w[f"{name}.1.bias"]

    hidden = layer(x.double().numpy(), "net1")
    assert hidden.shape == (7, 12)  # twice the space's 6
    erf = np.vectorize(math.erf)
    expected = layer(hidden * (1 + erf(hidden / math.sqrt(2))) / 2, "net2")
    np.testing.assert_allclose(head.eval()(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_method_has_its_own_usual_settings_where_none_are_given() -> None:
    config = read_config(SECTION | {"method": "textme", "epochs": 3})
    assert (config.negatives, config.bridge_temperature) == ((0.1, 0.9), 0.07)
    assert (config.learning_rate, config.batch_size, config.epochs) == (5e-4, 512, 3)
    assert read_config(config.model_dump()) == config
    assert read_config(SECTION | {"method": "c-mcr"}).negatives is None
    longer = scheduled(read_config(SECTION | {"method": "textme", "epochs": None}), pairs=900)
    assert longer.epochs == 500


def test_the_rate_rises_over_the_warm_up_and_falls_as_a_cosine() -> None:
    config = read_config(SECTION | {"method": "textme"})  # 50 epochs, 5 of them to warm up
    rates = [learning_rate(config, step, count=4) / 5e-4 for step in range(200)]
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    falling = [(1 + math.cos(math.pi * step / 180)) / 2 for step in range(180)]
    assert rates[20:] == pytest.approx(falling)


def test_terms_of_a_space_without_memory_drop_out() -> None:
    generator = torch.Generator().manual_seed(0)
    b1, a, b2 = (unit(generator, 9, 16) for _ in range(3))
    terms = objective((b1, a), (b2, None), read_config(SECTION))
    assert terms["inter_pseudo"] == 0
    assert terms["intra"].item() == pytest.approx(distance_reference(b1, a, 1) / 2, rel=1e-5)
    assert objective((b1, None), (b2, None), read_config(SECTION))["intra"] == 0


def test_equal_vectors_have_a_finite_gradient() -> None:
    x = torch.eye(3, requires_grad=True)
    torch.autograd.backward(attraction(x, torch.eye(3), "plain"))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_info_nce_of_indistinguishable_items_is_the_logarithm_of_their_number() -> None:
    x = torch.ones(7, 4) / 2
    assert info_nce(x, x, 0.01).item() == pytest.approx(math.log(7), rel=1e-5)


def test_noise_has_the_variance_that_is_named() -> None:
    x = torch.nn.functional.normalize(torch.ones(2000, 512), dim=1)
    generator = torch.Generator().manual_seed(0)
    noisy = perturb(x, 0.004, generator)
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(2000))
    # normalise(x + ε) has cosine 1/√(1 + Dσ²) with a unit x, for large D.
    cosine = (noisy * x).sum(dim=1).mean().item()
    assert cosine == pytest.approx(1 / math.sqrt(1 + 512 * 0.004), rel=0.01)
    assert not perturb(x, 0.004, generator).equal(noisy)
    torch.testing.assert_close(perturb(x.half(), 0.0, generator), x)


PUBLISHED = {
    "mlp": {
        "net1.0.weight": (1024, 512),
        "net1.0.bias": (1024,),
        "net1.1.weight": (1024,),
        "net1.1.bias": (1024,),
        "net1.1.running_mean": (1024,),
        "net1.1.running_var": (1024,),
        "net1.1.num_batches_tracked": (),
        "net2.0.weight": (512, 1024),
        "net2.0.bias": (512,),
        "net2.1.weight": (512,),
        "net2.1.bias": (512,),
        "net2.1.running_mean": (512,),
        "net2.1.running_var": (512,),
        "net2.1.num_batches_tracked": (),
    },
    "linear": {
        "net.0.weight": (512, 512),
        "net.0.bias": (512,),
        "net.1.weight": (512,),
        "net.1.bias": (512,),
        "net.1.running_mean": (512,),
        "net.1.running_var": (512,),
        "net.1.num_batches_tracked": (),
    },
}


@pytest.mark.parametrize("preset", ["mlp", "linear"])
def test_presets_have_the_published_layout(preset: str) -> None:
    state = make_head(preset, 512, 512).state_dict()  # type: ignore[arg-type]
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == PUBLISHED[preset]


def test_projectors_follow_the_seed_and_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    same, again, other = (make_heads(("mlp", "mlp"), (8, 6), 4, seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert same[0].net1[0].weight.equal(again[0].net1[0].weight)
    assert not same[0].net1[0].weight.equal(other[0].net1[0].weight)
    assert same[1](torch.randn(5, 6)).shape == (5, 4)


def test_defaults_are_the_papers() -> None:
    config = read_config(SECTION)
    assert (config.memory_temperature, config.bridge_temperature, config.pseudo_temperature) == (
        0.01,
        0.01,
        0.01,
    )
    assert (config.noise_variance, config.intra_weight, config.pseudo_weight) == (0.004, 0.1, 1.0)
    at_scale = scheduled(config, pairs=2_330_000)
    assert (config.learning_rate, at_scale.epochs, at_scale.batch_size) == (1e-3, 36, 10_240)
    assert (config.method, config.projector, config.joint_dim) == ("auto", "mlp", 512)


def test_overrides_are_read_as_yaml_in_order() -> None:
    config = with_overrides(
        read_config(SECTION), ["noise_variance=0", "learning_rate=1e-4", "epochs=2", "epochs=3"]
    )
    assert (config.noise_variance, config.learning_rate, config.epochs) == (0, 1e-4, 3)
    centred = with_overrides(config, ["method=ridge", "centre=true", "memory=[a, b]"])
    assert (centred.model_name, centred.memory) == ("ridge-centred", ("a", "b"))


def test_another_method_brings_its_usual_settings_and_the_rest_stays() -> None:
    plain = read_config(SECTION | {"method": "c-mcr", "seed": 3, "weight_decay": 0.1})
    for method in ("ex-mcr", "textme", "cca"):
        changed = with_overrides(plain, [f"method={method}", "patience=4"])
        asked = {"method": method, "seed": 3, "weight_decay": 0.1, "patience": 4}
        assert changed == read_config(SECTION | asked)
        assert with_overrides(changed, ["method=c-mcr", "patience=10"]) == plain
    bridge = read_config(SECTION | {"method": "ex-mcr", "centric": ["bridge"]})
    assert with_overrides(bridge, ["method=ex-mcr", "seed=1"]).centric == ("bridge",)
    textme = read_config(SECTION | {"method": "textme", "epochs": 7})
    assert with_overrides(textme, ["method=c-mcr"]) == read_config(
        SECTION | {"method": "c-mcr", "epochs": 7}
    )
    assert with_overrides(textme, ["seed=1"]).warm_up == 0.1


@pytest.mark.parametrize("method", ["textme", "cca", "identity"])
def test_rows_to_aggregate_from_are_refused_where_nothing_is_aggregated(method: str) -> None:
    with pytest.raises(UsageError, match=f"{method} aggregates nothing") as refused:
        with_overrides(read_config(SECTION), [f"method={method}", "centric=[bridge, first]"])
    assert refused.value.where and refused.value.fix  # noqa: PT018
    assert read_config(SECTION | {"centric": ["first"]}).centric == ("first",)  # auto may


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("noise=0", "no setting 'noise'"),
        ("noise_variance", "sets nothing"),
        ("noise_variance=-1", "cannot use noise_variance"),
        ("noise_variance=nan", "cannot use noise_variance"),
        ("epochs=many", "cannot use epochs"),
        ("batch_size=1", "cannot use batch_size"),
        ("spaces=[clip, clip]", "both spaces are 'clip'"),
        ("train=[a, a]", "named twice"),
        ("train=[]", "`train` names the datasets"),
        ("validation=0.6", "cannot use validation"),
        ("epochs=[", "cannot be read"),
        ("method=magic", "cannot use method"),
        ("negatives=[0.9, 0.1]", "cannot use negatives"),
    ],
)
def test_overrides_that_cannot_be_used_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_overrides(read_config(SECTION), [override])


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UsageError, match="cannot use via"):
        read_config({"spaces": ["a", "b"], "train": ["c"]}, where="pipelines.yaml")
