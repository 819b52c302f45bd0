"""One pass through the transformer at one time step, from latents to the velocity, over functions that may be compiled.

The pass is static: it reads nothing back, allocates the same tensors every time, and all that changes from step to step
comes in as a tensor. So it can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from zimage_ui.generator.fast.attention import AttentionBackend, attention_by
from zimage_ui.generator.fast.block import BlockKernels, BlockWeights, block_weights, run_block
from zimage_ui.generator.fast.modulation import ROWS_A_BLOCK, plain_rows
from zimage_ui.generator.fast.parts import Parts, parts_by
from zimage_ui.generator.fast.patches import from_patches, to_patches
from zimage_ui.generator.fast.product_kernels import USUAL_PRODUCTS, ProductKernels
from zimage_ui.generator.fast.projections import Projection, packed, packing_pays
from zimage_ui.generator.fast.quantised_rows import Activations, joined
from zimage_ui.generator.fast.rotary import Rotary
from zimage_ui.generator.fast.rounding import RoundedBlocks
from zimage_ui.generator.fast.shapes import PATCH_KEY, TOKEN_MULTIPLE, DenoiserShape
from zimage_ui.generator.fast.slots import Transfer
from zimage_ui.generator.fast.streaming import StreamedLayers
from zimage_ui.request import Precision

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel


class EntryWeights(NamedTuple):
    """What makes tokens of latents.

    Attributes:
        weight, bias: of the map from a patch to a token.
        pad_token: (1, dim), what an image is filled up with to a multiple of 32 tokens.
        eps: of the first block's norm.
        first: the projection that reads what is normed.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    pad_token: torch.Tensor
    eps: float
    first: Projection


class ExitWeights(NamedTuple):
    """What makes a velocity of tokens: the map from a token to a patch, and the eps of the norm before it."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float


def enter(
    latents: torch.Tensor, weights: EntryWeights, scale: torch.Tensor, parts: Parts
) -> tuple[torch.Tensor, Activations]:
    """The image's tokens (pictures, padded tokens, dim) of fp32 latents, and the same normed for the first block."""
    patches = to_patches(latents.to(weights.weight.dtype))
    missing = -patches.shape[1] % TOKEN_MULTIPLE
    if missing:  # here: filled up after the product, all tokens would be copied, sixty times as many values
        patches = functional.pad(patches, (0, 0, 0, missing))
    tokens = functional.linear(patches, weights.weight, weights.bias)
    if missing:
        tokens[:, -missing:] = weights.pad_token
    return tokens, parts.rms_normed(tokens, scale, weights.eps, weights.first)


def leave(
    tokens: torch.Tensor, weights: ExitWeights, scale: torch.Tensor, height: int, width: int, parts: Parts
) -> torch.Tensor:
    """The velocity, (pictures, channels, height, width) in fp32, that the image's tokens say; others are left out."""
    image = tokens[:, : DenoiserShape(height, width, 0).image_tokens]
    normed = parts.layer_normed(image, scale, weights.eps)
    patches = functional.linear(normed, weights.weight, weights.bias)
    return -from_patches(patches.float(), height, width)  # the model predicts picture minus noise


class StepFunctions(NamedTuple):
    """The three functions that a pass is made of.

    Attributes:
        enter, block, leave: `enter`, `run_block` and `leave`, or what a compiler made of them.
        specialised: whether calling one of them in a further way would cost a compilation.
        triton: whether what lies between the products is `triton_parts`.
    """

    enter: Callable[..., tuple[torch.Tensor, Activations]]
    block: Callable[..., tuple[torch.Tensor, Activations]]
    leave: Callable[..., torch.Tensor]
    specialised: bool
    triton: bool = False

    @property
    def parts(self) -> Parts:
        """What computes what lies between the products."""
        return parts_by(triton=self.triton)


EAGER = StepFunctions(enter, run_block, leave, specialised=False)
TRITON = EAGER._replace(triton=True)


@dataclass(frozen=True, slots=True)
class PassPlan:
    """What is settled about a pass before it runs.

    Attributes:
        shape: of all that comes in.
        rotary: the shape's tables.
        backend: of the attention; None leaves it to torch.
        functions: what it is made of.
        gate_tile: of the gated product's kernel; None is the plain product (`gate.fastest_gate_tile`).
        products: the kernels of the products in the main layers (`product_kernels.fastest_products`).
        image_products: those of the blocks that the image's tokens pass alone.
    """

    shape: DenoiserShape
    rotary: Rotary
    backend: AttentionBackend | None = None
    functions: StepFunctions = EAGER
    gate_tile: str | None = None
    products: ProductKernels = USUAL_PRODUCTS
    image_products: ProductKernels = USUAL_PRODUCTS

    @property
    def image_kernels(self) -> BlockKernels:
        """Of the blocks before the caption joins."""
        return self.kernels._replace(products=self.image_products)

    @property
    def kernels(self) -> BlockKernels:
        """Of the main layers."""
        return BlockKernels(self.backend, self.gate_tile, self.functions.triton, self.products)


class StepNetwork:
    """A stock transformer's weights, laid out for passes; its own parameters become views of them.

    In a lossy precision the blocks that every step runs have other weights than the stock module, which loses its own.

    Attributes:
        refiner, context: the blocks that only the image's tokens pass, and only the caption's.
        layers: the main ones, some of which may be streamed.
    """

    def __init__(
        self,
        transformer: ZImageTransformer2DModel,
        device: torch.device | None = None,
        transfer: Transfer[Any] | None = None,
        precision: Precision | RoundedBlocks = Precision.EXACT,
    ) -> None:
        """Fuse the weights where they are.

        Args:
            transformer: for inference.
            device: where it computes; None is where it is.
            transfer: brings streamed layers to the device; None is CUDA's own.
            precision: of the matrix products of `refiner` and `layers`; or those products, where they were rounded
                while the model was read.
        """
        final = transformer.all_final_layer[PATCH_KEY]
        embedder = transformer.all_x_embedder[PATCH_KEY]
        self._transformer = transformer
        self.refiner = _weights_of(transformer, "noise_refiner", precision)
        layers = _weights_of(transformer, "layers", precision)
        homes = precision.take_homes() if isinstance(precision, RoundedBlocks) else None
        self.context = [block_weights(block) for block in transformer.context_refiner]
        self._context_rows = [plain_rows(block) for block in transformer.context_refiner]
        if precision is Precision.EXACT and transfer is None and packing_pays(transformer):
            self.refiner, layers = _pack(self.refiner), _pack(layers)
        first = self.refiner[0]
        self._entry = EntryWeights(
            embedder.weight, embedder.bias, transformer.x_pad_token, first.eps, first.projections.query_key_value
        )
        self._exit = ExitWeights(final.linear.weight, final.linear.bias, final.norm_final.eps)
        self._eps, self._head_dim = layers[0].eps, layers[0].query_norm.shape[-1]
        self.layers = StreamedLayers(transformer.layers, layers, device or transformer.device, transfer, homes)

    @property
    def heads_shape(self) -> tuple[int, int]:
        """Number of attention heads, and values of each."""
        return self._transformer.dim // self._head_dim, self._head_dim

    @property
    def form(self) -> torch.dtype | None:
        """What the products of the blocks read (`Projection.form`); None where they differ."""
        forms = {each.form for weights in self.refiner for each in weights.projections}
        return forms.pop() if len(forms) == 1 else None

    @property
    def dim(self) -> int:
        """Values of one token."""
        return self._transformer.dim

    @property
    def caption_features(self) -> int:
        """Values of one token of a prompt, as the text encoder leaves it."""
        return int(self._transformer.config.cap_feat_dim)

    @property
    def row_count(self) -> int:
        """Rows of modulation that a pass reads."""
        return ROWS_A_BLOCK * (len(self.refiner) + len(self.layers)) + 1

    def refine(
        self, rotary: torch.Tensor, prompt_embeds: torch.Tensor, is_real: torch.Tensor, *, triton: bool = False
    ) -> torch.Tensor:
        """The caption as the main layers read it, which no step changes.

        Static, as a pass is: how many tokens the prompt has comes in as a tensor.

        Args:
            rotary: the rotation of each token (`caption_rotary`).
            prompt_embeds: (padded tokens, features) of the text encoder, anything behind the prompt's own.
            is_real: (padded tokens, 1), whether a token is the prompt's.
            triton: what lies between the products of a block by `triton_parts`.

        Returns:
            (1, padded tokens, dim).
        """
        model, first = self._transformer, self.context[0]
        tokens = torch.where(is_real, model.cap_embedder(prompt_embeds), model.cap_pad_token)[None]
        # A block norms for its follower, too: the rows run on from block to block.
        rows = torch.cat((*self._context_rows, torch.ones_like(self._context_rows[0][:1])))
        reader = first.projections.query_key_value
        normed = parts_by(triton=triton).rms_normed(tokens, rows[0], first.eps, reader)
        kernels = BlockKernels(triton=triton)
        for weights, block_rows in zip(self.context, _windows(rows), strict=True):
            tokens, normed = run_block(tokens, normed, weights, block_rows, rotary, kernels=kernels)
        return tokens

    def velocity(
        self, plan: PassPlan, latents: torch.Tensor, rows: torch.Tensor, captions: torch.Tensor
    ) -> torch.Tensor:
        """The velocity at `latents`.

        Args:
            plan: made for the shape of the other arguments.
            latents: (pictures, channels, height, width), fp32.
            rows: (rows, dim), fp32: the modulation of this step.
            captions: (pictures, padded caption tokens, dim), refined, in the model's dtype.

        Returns:
            fp32, of the latents' shape.
        """
        shape, run, windows = plan.shape, plan.functions, _windows(rows)
        kernels, image_kernels, parts = plan.kernels, plan.image_kernels, run.parts
        refiner_windows, layer_windows = windows[: len(self.refiner)], windows[len(self.refiner) :]
        with attention_by(plan.backend):
            tokens, normed = run.enter(latents, self._entry, rows[0], parts)
            for weights, block_rows in zip(self.refiner, refiner_windows, strict=True):
                tokens, normed = run.block(tokens, normed, weights, block_rows, plan.rotary.image, None, image_kernels)
            tokens, normed = self._join(tokens, normed, captions, rows[ROWS_A_BLOCK * len(self.refiner)], parts)
            for number, (weights, block_rows) in enumerate(zip(self.layers, layer_windows, strict=True), 1):
                # Nobody reads the captions after the last. Leaving them out would not pay for its compilation.
                ends = number == len(self.layers) and not run.specialised
                kept = shape.image_tokens if ends else None
                tokens, normed = run.block(tokens, normed, weights, block_rows, plan.rotary.whole, kept, kernels)
            return run.leave(tokens, self._exit, rows[-1], shape.height, shape.width, parts)

    def _join(
        self, tokens: torch.Tensor, normed: Activations, captions: torch.Tensor, scale: torch.Tensor, parts: Parts
    ) -> tuple[torch.Tensor, Activations]:
        """The captions behind the image's tokens, and their norm behind the image's."""
        reader = self.refiner[-1].projections.query_key_value  # as the image's tokens were read
        normed_captions = parts.rms_normed(captions, scale, self._eps, reader)
        return torch.cat((tokens, captions), dim=1), joined(normed, normed_captions)


def _windows(rows: torch.Tensor) -> list[torch.Tensor]:
    """The four rows of each block: its own but the first, which the block before it used, and the first of the next."""
    return [rows[start : start + ROWS_A_BLOCK] for start in range(1, len(rows), ROWS_A_BLOCK)]


def _weights_of(
    transformer: ZImageTransformer2DModel, stack: str, precision: Precision | RoundedBlocks
) -> list[BlockWeights]:
    blocks = transformer.get_submodule(stack).children()
    if isinstance(precision, RoundedBlocks):
        return [block_weights(block, projections=precision.take(stack, place)) for place, block in enumerate(blocks)]
    return [block_weights(block, precision) for block in blocks]


def _pack(blocks: list[BlockWeights]) -> list[BlockWeights]:
    return [weights._replace(projections=packed(weights.projections)) for weights in blocks]
