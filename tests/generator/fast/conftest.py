"""A small random transformer, with norms and pad tokens that a mistake would show in, and the bundled one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

CONFIG = {
    "dim": 96, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 24,
    "axes_dims": [16, 16, 16], "axes_lens": [512, 64, 64],
}  # fmt: skip


def random_transformer(**changes: Any) -> Any:
    """A transformer whose every tensor matters; the same each time."""
    from diffusers import ZImageTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = ZImageTransformer2DModel(**{**CONFIG, **changes})
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and not name.endswith("bias"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            elif "pad_token" in name or name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def transformer() -> Any:
    return random_transformer()


@pytest.fixture(scope="session")
def bundled_transformer() -> Any:
    from diffusers import ZImageTransformer2DModel

    from zimage_ui.generator.sources import BUNDLED_FOLDER

    model = ZImageTransformer2DModel.from_pretrained(BUNDLED_FOLDER / "transformer", local_files_only=True)
    return model.eval().requires_grad_(False)


@pytest.fixture
def distance() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The norm of the difference, relative to the expected values' own."""
    return lambda values, expected: float((values - expected).norm() / expected.norm())


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """Normal numbers of a shape, the same each time."""
    return lambda *shape, seed=0: torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class ReplayingRecorder:
    """A stand-in for CUDA graphs: replaying is running again, into the same answer.

    Attributes:
        recorded: how often something was recorded.
    """

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        work()
        answer = work()
        self.recorded += 1

        def replay() -> None:
            answer.copy_(work())

        return replay, answer


def stock_products(block: Any, values: torch.Tensor, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the linear layers of a stock block make of `values`, and the last of `hidden`, by our products' names."""
    attention, feed_forward = block.attention, block.feed_forward
    return {
        "query_key_value": torch.cat([layer(values) for layer in (attention.to_q, attention.to_k, attention.to_v)], -1),
        "output": attention.to_out[0](values),
        "gate_up": torch.cat([feed_forward.w1(values), feed_forward.w3(values)], -1),
        "down": feed_forward.w2(hidden),
    }


class CountedBackend:
    """A backend of torch.compile that runs what was traced, and counts."""

    def __init__(self) -> None:
        self.compilations = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        self.compilations += 1
        return graph.forward


@pytest.fixture
def backend() -> Iterator[CountedBackend]:
    """A count that begins anew, whatever was compiled before."""
    torch._dynamo.reset()
    yield CountedBackend()
    torch._dynamo.reset()
