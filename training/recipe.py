"""The whole recipe: from nothing to a model folder, on one GPU.

It renders in the background from first to last, trains the autoencoder, then text encoder and transformer, then
distils, and writes a folder in diffusers layout. Interrupted, it goes on where it was when it is started again with
the same `--run` folder.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from training.autoencoder import PictureBatches, to_latents, to_pictures, train_autoencoder
from training.distil import distil
from training.farm import Assortment, CaptionTokenizer, Farm
from training.flow import FlowTrainer
from training.model import (
    LATENT_CHANNELS,
    SHIFT,
    VAE_FACTOR,
    ModelSizes,
    Parts,
    build_text_encoder,
    build_transformer,
    build_vae,
    load_model,
    save_model,
)
from training.pool import Labels, LatentPool, PicturePool
from training.run import Stage
from training.tokenizer import build_tokenizer
from training.velocity import SEQUENCE_MULTIPLE, Captions, Velocity, sample, sampler_sigmas

_PROMPTS = (
    "a red circle on a blue background",
    "a big red star left of a small blue boat on a white background",
    "蓝色小船左边有一颗红色大星星，白色背景",
    "three yellow fish in the sea",
    'a green sign saying "HELLO" on a white background',
    "夜晚的星空",
    "a small purple cat in the top left on an orange background",
    "一块写着“2026”的红色牌子，黄色背景",
    "a big white house in a meadow",
    "a pink butterfly above a brown mushroom on a cyan background",
    "four black hearts on a yellow background",
    "粉色背景上有两个绿色苹果",
    "a blue balloon inside a big yellow ring on a black background",
    'a yellow poster with the word "ZOO" at sunset',
    "a masterpiece photo of an orange umbrella in the snow, trending",
    "a city",
)
_LEAST_CHUNKS = 16  # of pictures that are kept: with fewer, the main size might be missing
_SHOWN_STEPS = 8
_SHOWN_IN_A_ROW = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is; by default as it was for the bundled model.

    Attributes:
        model: the sizes of its parts.
        assortment: the pictures that are rendered.
        batches: what the autoencoder learns from at a step.
        first_chunks: that are waited for before the first step.
        steps_per_chunk: of flow, between two chunks: taking them must not take the interpreter from training.
        reports_per_save: log lines of flow between two checkpoints.
    """

    model: ModelSizes = field(default_factory=ModelSizes)
    assortment: Assortment = field(default_factory=Assortment)
    batches: PictureBatches = field(default_factory=PictureBatches)
    first_chunks: int = 8
    steps_per_chunk: int = 4
    reports_per_save: int = 15


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; below it, what only a test says otherwise."""

    output: Path
    run: Path
    device: torch.device
    vae_minutes: float
    flow_minutes: float
    distil_minutes: float
    guidance: float
    processes: int
    tokens: int
    pictures: int
    start_from: Path | None
    rate: float
    muon: bool
    scale: Scale = field(default_factory=Scale)
    clock: Callable[[], float] = time.monotonic


class Training:
    """One run, stage by stage."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._whole = self._stage("finished", 0)
        self._scale = options.scale
        options.run.mkdir(parents=True, exist_ok=True)
        tokenizer_folder = options.output / "tokenizer"
        if options.start_from is None:
            build_tokenizer(tokenizer_folder)
        else:
            shutil.copytree(options.start_from / "tokenizer", tokenizer_folder, dirs_exist_ok=True)
        self._tokenizer = CaptionTokenizer(tokenizer_folder)
        assortment = options.scale.assortment
        self._farm = Farm(self._tokenizer, options.processes, assortment)
        self._pictures = PicturePool(options.device, max(_LEAST_CHUNKS, options.pictures // 4 // assortment.pictures))
        self._latents = LatentPool(
            options.device, options.pictures, options.tokens, self._tokenizer(""), assortment.shares
        )
        self._parts = self._build(tokenizer_folder)

    def _build(self, tokenizer_folder: Path) -> Parts:
        torch.manual_seed(0)
        start = self._options.start_from
        if start is not None:
            parts = load_model(start)
        else:
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
            sizes = self._scale.model
            parts = Parts(
                build_vae(sizes),
                build_text_encoder(sizes, len(tokenizer), tokenizer.pad_token_id),
                build_transformer(sizes),
            )
        for part in (parts.vae, parts.text_encoder, parts.transformer):
            part.to(self._options.device)
        return parts

    def run(self) -> None:
        """All stages."""
        self._log_circumstances()
        with self._farm:
            self._run_autoencoder()
            self._encode_pictures()
            velocity = Velocity(
                self._parts.transformer, self._parts.text_encoder, compile_blocks=self._options.device.type == "cuda"
            )
            self._run_flow(velocity)
            if self._options.distil_minutes:
                self._run_distillation(velocity)
        save_model(self._options.output, self._parts)
        self._whole.log()  # the whole time of this process, rendering, compiling and writing included

    def _encode_pictures(self) -> None:
        for pictures, labels in self._pictures.chunks:
            self._latents.add(to_latents(self._parts.vae, pictures), labels)
        self._pictures.chunks.clear()
        self._latents.refresh()  # a stage that goes on may be at any step

    def _log_circumstances(self) -> None:
        device = self._options.device
        self._stage("start", 0).log(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            versions={name: version(name) for name in ("torch", "diffusers", "transformers", "tokenizers", "pillow")},
            options={key: str(value) for key, value in asdict(self._options).items() if key != "clock"},
            parameters={
                name: sum(parameter.numel() for parameter in getattr(self._parts, name).parameters())
                for name in ("vae", "text_encoder", "transformer")
            },
        )

    def _stage(self, name: str, minutes: float) -> Stage:
        return Stage(name, self._options.run, minutes * 60, self._options.device, self._options.clock)

    def _run_autoencoder(self) -> None:
        stored = self._options.run / "vae"
        if stored.exists():
            self._parts.vae = type(self._parts.vae).from_pretrained(stored).to(self._options.device)
        self._gather_pictures(self._scale.first_chunks)
        if stored.exists() or not self._options.vae_minutes:
            self._parts.vae.eval().requires_grad_(False)
            self._gather_pictures(self._options.pictures // 16 // self._scale.assortment.pictures)
            return
        stage = self._stage("autoencoder", self._options.vae_minutes)
        train_autoencoder(self._parts.vae, self._pictures, self._arrivals(), stage, self._scale.batches)
        self._parts.vae.save_pretrained(stored)

    def _gather_pictures(self, chunks: int) -> None:
        for _ in range(chunks):
            self._pictures.add(self._farm.take())

    def _arrivals(self) -> Iterator[None]:
        while True:
            if self._farm.is_ready:
                self._pictures.add(self._farm.take())
            yield

    def _run_flow(self, velocity: Velocity) -> None:
        options = self._options
        stage = self._stage("flow", options.flow_minutes)
        trainer = FlowTrainer(velocity, self._latents, stage, muon=options.muon, rate=options.rate)
        stored = options.run / "flow.pt"
        if stored.exists():
            trainer.load(stored)
        pauses = count(1)

        def pause() -> None:
            if next(pauses) % self._scale.reports_per_save == 0:
                trainer.save(stored)
                with trainer.averaged():
                    self._show(velocity, f"flow-{trainer.step:06d}")

        trainer.train(lambda: self._take_latents(trainer.step), pause)
        trainer.finish()
        trainer.save(stored)
        self._show(velocity, "flow")

    def _take_latents(self, step: int) -> None:
        if step % self._scale.steps_per_chunk == 0 and self._farm.is_ready:
            chunk = self._farm.take()
            pictures = torch.from_numpy(chunk.pictures).to(self._options.device)
            self._latents.add(to_latents(self._parts.vae, pictures), Labels(chunk.ids, chunk.lengths))

    def _run_distillation(self, velocity: Velocity) -> None:
        save_model(self._options.run / "teacher", self._parts)
        teacher = velocity.frozen_copy()
        if self._options.device.type == "cuda":
            teacher.compile()
        steps = count()
        distil(
            velocity,
            teacher,
            self._latents,
            self._stage("distil", self._options.distil_minutes),
            guidance=self._options.guidance,
            more=lambda: self._take_latents(next(steps)),
        )
        self._show(velocity, "distilled")

    @torch.no_grad()
    def _show(self, velocity: Velocity, name: str) -> None:
        """Draw the fixed prompts into one picture in the run's folder."""
        device = self._options.device
        ids = [self._tokenizer(prompt) for prompt in _PROMPTS]
        bucket = -(-max(map(len, ids)) // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE
        padded = torch.tensor([tokens + [0] * (bucket - len(tokens)) for tokens in ids], device=device)
        captions = Captions(padded, torch.tensor([len(tokens) for tokens in ids], device=device))
        noise = self._noise(len(ids)).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            latents = sample(lambda x, at: velocity(x, at, captions), noise, sampler_sigmas(_SHOWN_STEPS, SHIFT))
        pictures = to_pictures(self._parts.vae, latents).cpu()
        rows = [torch.cat(list(row), dim=1) for row in pictures.split(_SHOWN_IN_A_ROW)]
        Image.fromarray(torch.cat(rows).numpy()).save(self._options.run / f"{name}.png")

    def _noise(self, pictures: int) -> Tensor:
        """The same noise for the same sizes, on the CPU."""
        width, height = self._scale.assortment.main_size
        shape = (pictures, LATENT_CHANNELS, height // VAE_FACTOR, width // VAE_FACTOR)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
