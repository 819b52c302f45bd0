"""Device, dtype and memory plan: every card can be tried without one."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from zimage_ui.errors import DeviceMemoryError
from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.placement import (
    Device,
    MemoryBudget,
    MemoryNeed,
    choose_dtype,
    choose_plan,
    memory_need,
    read_device,
)
from zimage_ui.generator.sources import TURBO_SIZES
from zimage_ui.request import Precision

GIB = 2**30
TURBO_NEED = memory_need(TURBO_SIZES, (1024, 1024), 2)
TURBO_NEEDS = {precision: memory_need(TURBO_SIZES, (1024, 1024), 2, precision=precision) for precision in Precision}


def gpu(
    total_gib: float, *, free_gib: float | None = None, capability: tuple[int, int] = (8, 9), name: str = "a card"
) -> Device:
    free_gib = total_gib - 0.5 if free_gib is None else free_gib  # a context and a desktop
    return Device(
        torch_name="cuda:0",
        name=name,
        free_bytes=int(free_gib * GIB),
        total_bytes=int(total_gib * GIB),
        capability=capability,
    )


def cpu(free_gib: float) -> Device:
    return Device(torch_name="cpu", name="CPU, 2 threads", free_bytes=int(free_gib * GIB), total_bytes=32 * GIB)


@pytest.mark.parametrize(
    ("device", "name", "reason"),
    [
        (gpu(80, capability=(9, 0), name="NVIDIA H100"), "bf16", "NVIDIA H100 computes in bf16 natively"),
        (gpu(10, capability=(8, 6), name="RTX 3080"), "bf16", "RTX 3080 computes in bf16 natively"),
        (gpu(32, capability=(12, 0), name="RTX 5090"), "bf16", "RTX 5090 computes in bf16 natively"),
        (gpu(16, capability=(7, 5), name="Tesla T4"), "fp16", "Tesla T4 (compute capability 7.5) has no bf16"),
        (cpu(8), "fp32", "a CPU computes fastest and most exactly in fp32"),
    ],
)  # fmt: skip
def test_the_dtype_follows_the_hardware_and_says_why(device: Device, name: str, reason: str):
    choice = choose_dtype(device)
    assert (choice.name, choice.reason) == (name, reason)
    assert choice.itemsize == (4 if name == "fp32" else 2)


@pytest.mark.parametrize(
    ("card", "plan", "streamed_layers"),
    [
        (gpu(80), MemoryPlan.RESIDENT, 0),
        (gpu(24), MemoryPlan.RESIDENT, 0),
        (gpu(16), MemoryPlan.TEXT_ENCODER_OFFLOADED, 0),
        (gpu(24, free_gib=15), MemoryPlan.STREAMED, 3),
        (gpu(16, free_gib=14), MemoryPlan.STREAMED, 6),
        (gpu(12), MemoryPlan.STREAMED, 13),
        (gpu(8), MemoryPlan.STREAMED, 26),
        (gpu(6), MemoryPlan.SMALLEST, 30),
    ],
)
def test_the_full_size_model_takes_the_fastest_plan_that_fits(card: Device, plan: MemoryPlan, streamed_layers: int):
    choice = choose_plan(card, TURBO_NEED)
    assert (choice.plan, choice.streamed_layers) == (plan, streamed_layers)


@pytest.mark.parametrize("precision", [Precision.FP8, Precision.INT8])
@pytest.mark.parametrize(
    ("card", "plan", "streamed_layers", "exact_streamed_layers"),
    [
        (gpu(24), MemoryPlan.RESIDENT, 0, 0),
        (gpu(20), MemoryPlan.RESIDENT, 0, 0),
        (gpu(16), MemoryPlan.TEXT_ENCODER_OFFLOADED, 0, 0),
        (gpu(12), MemoryPlan.TEXT_ENCODER_OFFLOADED, 0, 13),
        (gpu(10), MemoryPlan.STREAMED, 5, 20),  # 0.9 GB a step instead of 7.1
        (gpu(8), MemoryPlan.STREAMED, 17, 26),  # 3.0 GB a step instead of 9.2
        (gpu(6), MemoryPlan.STREAMED, 29, 30),  # and no tiles
        (gpu(5), MemoryPlan.SMALLEST, 30, 30),
    ],
)
def test_in_eight_bits_more_of_the_full_size_model_stays(
    card: Device, plan: MemoryPlan, streamed_layers: int, exact_streamed_layers: int, precision: Precision
):
    choice = choose_plan(card, TURBO_NEEDS[precision])
    assert (choice.plan, choice.streamed_layers) == (plan, streamed_layers)
    assert choose_plan(card, TURBO_NEED).streamed_layers == exact_streamed_layers


def test_eight_bits_are_eight_bits_and_a_scale_for_each_row():
    exact, lossy = (TURBO_NEEDS[precision] for precision in (Precision.EXACT, Precision.INT8))
    rows = 3 * 3840 + 3840 + 2 * 10240 + 3840
    assert lossy.layer_bytes == exact.layer_bytes // 2 + 4 * rows
    assert exact.transformer_bytes - lossy.transformer_bytes == 32 * (exact.layer_bytes - lossy.layer_bytes)
    assert (lossy.text_encoder_bytes, lossy.vae_bytes) == (exact.text_encoder_bytes, exact.vae_bytes)


def test_extents_that_tensor_cores_do_not_take_are_not_counted_as_rounded():
    sizes = replace(TURBO_SIZES, transformer_width=256)  # 682 in the feed-forward
    assert sizes.layer_bytes(2, Precision.EXACT) == 2 * 256 * (4 * 256 + 3 * 682)
    assert sizes.layer_bytes(2, Precision.FP8) == 4 * 256 * (256 + 4) + 2 * 256 * 3 * 682


@pytest.mark.parametrize(
    ("card", "advice"),
    [
        (gpu(12), "ZIMAGE_PRECISION=fp8 would keep the whole transformer on the card (6.7 GB instead of 12.3 GB, and"),
        (gpu(12, capability=(8, 6)), "ZIMAGE_PRECISION=int8 would keep the whole transformer on the card"),
        (gpu(8, capability=(8, 6)), "ZIMAGE_PRECISION=int8 would copy 3.0 GB instead of 9.2 GB in each step, for a"),
        (
            gpu(12, capability=(7, 0)),
            "ZIMAGE_PRECISION=nf4 would keep the whole transformer on the card (4.2 GB instead",
        ),
        (gpu(24), None),
        (gpu(16), None),  # the text encoder is none of its business
    ],
)
def test_where_exact_has_to_stream_the_reason_names_the_precision_that_helps(card: Device, advice: str | None):
    reason = choose_plan(card, TURBO_NEED).reason
    assert advice in reason if advice else "ZIMAGE_PRECISION" not in reason


def test_four_bits_are_named_only_where_eight_are_not_to_be_had():
    for card_gib in (12, 10, 8):
        assert "nf4" not in choose_plan(gpu(card_gib), TURBO_NEED).reason
    short_of_host_memory = replace(gpu(8), host_free_bytes=10 * 10**9)
    with pytest.raises(DeviceMemoryError) as raised:
        choose_plan(short_of_host_memory, TURBO_NEED)
    assert raised.value.hint.endswith(
        "ZIMAGE_PRECISION=nf4 would fit (4.2 GB instead of 12.3 GB, and a picture that is further from exact than in "
        "eight bits)."
    )


@pytest.mark.parametrize(
    ("card", "plan", "streamed_layers"),
    [
        (gpu(16), MemoryPlan.RESIDENT, 0),
        (gpu(10), MemoryPlan.TEXT_ENCODER_OFFLOADED, 0),
        (gpu(8), MemoryPlan.STREAMED, 4),
        (gpu(6), MemoryPlan.STREAMED, 26),
    ],
)
def test_in_four_bits_still_more_of_it_stays(card: Device, plan: MemoryPlan, streamed_layers: int):
    choice = choose_plan(card, TURBO_NEEDS[Precision.NF4])
    assert (choice.plan, choice.streamed_layers) == (plan, streamed_layers)
    assert choice.reason.startswith("the transformer's matrices are kept in nf4: 4.2 GB instead of 12.3 GB;")


def test_four_bits_are_four_and_a_half_and_one_matrix_unpacked():
    exact, nf4 = (TURBO_NEEDS[precision] for precision in (Precision.EXACT, Precision.NF4))
    assert nf4.layer_bytes == exact.layer_bytes * 4.5 / 16
    assert exact.transformer_bytes - nf4.transformer_bytes == 32 * (exact.layer_bytes - nf4.layer_bytes)
    assert nf4.working_bytes - exact.working_bytes == 2 * 3840 * 20480


def test_where_exact_does_not_fit_the_hint_names_the_precision_that_does():
    with pytest.raises(DeviceMemoryError) as raised:
        choose_plan(gpu(4.5, capability=(8, 6), free_gib=4.05), TURBO_NEED)
    assert raised.value.hint.endswith(
        "ZIMAGE_PRECISION=int8 would fit (6.7 GB instead of 12.3 GB, and a picture that is not quite exact)."
    )
    with pytest.raises(DeviceMemoryError) as raised:
        choose_plan(gpu(3), TURBO_NEED)
    assert raised.value.hint.endswith("or set ZIMAGE_MODEL=auto for the small model.")


@pytest.mark.parametrize(
    ("card", "after"),
    [
        (gpu(24), "everything fits: 18.0 GB needed, 25.2 GB free"),
        (gpu(12), "the text encoder (8.0 GB) does not fit beside the rest: 10.0 GB needed, 12.3 GB free"),
    ],
)
def test_a_plan_in_eight_bits_says_what_that_saves(card: Device, after: str):
    said = choose_plan(card, TURBO_NEEDS[Precision.INT8]).reason
    assert said == f"the transformer's matrices are kept in int8: 6.7 GB instead of 12.3 GB; {after}"


def test_uncompiled_in_eight_bits_takes_more_than_a_tile():
    eight_bit = (Precision.EXACT, Precision.FP8, Precision.INT8)
    needs = [TURBO_NEEDS[precision].tiled_working_bytes for precision in eight_bit]
    assert needs[0] == needs[1] < needs[2] < 1.1 * needs[0]


@pytest.mark.parametrize("card", [gpu(4), gpu(24, free_gib=3)])
def test_a_card_that_is_too_small_is_told_so_with_the_numbers(card: Device):
    with pytest.raises(DeviceMemoryError) as raised:
        choose_plan(card, TURBO_NEED)
    assert raised.value.message.startswith("a card has ")
    assert "the smallest plan needs 4.4 GB" in raised.value.message
    assert "ZIMAGE_MODEL=auto" in raised.value.hint


def test_what_leaves_the_gpu_has_to_fit_the_host():
    card = replace(gpu(8), host_free_bytes=16 * GIB)
    with pytest.raises(DeviceMemoryError) as raised:
        choose_plan(card, TURBO_NEED)
    assert raised.value.message == (
        "a card has 8.1 GB free, and the host 17.2 GB; "
        "the smallest plan needs 4.4 GB on the GPU and 18.7 GB of host memory."
    )
    assert choose_plan(replace(card, host_free_bytes=32 * GIB), TURBO_NEED).plan is MemoryPlan.STREAMED
    assert choose_plan(replace(gpu(24), host_free_bytes=2 * GIB), TURBO_NEED).plan is MemoryPlan.RESIDENT


def test_as_many_layers_stay_as_there_is_room_for():
    choice = choose_plan(gpu(12), TURBO_NEED)
    taken_bytes = TURBO_NEED.of(choice.plan, choice.streamed_layers) + 600_000_000
    assert taken_bytes <= gpu(12).free_bytes < taken_bytes + TURBO_NEED.layer_bytes


def test_a_model_of_two_layers_streams_nothing():
    need = replace(TURBO_NEED, layers=2)
    choice = choose_plan(gpu(16, free_gib=14), need)
    assert (choice.plan, choice.streamed_layers) == (MemoryPlan.SMALLEST, 0)


def test_a_plan_says_why_with_the_numbers():
    assert choose_plan(gpu(80), TURBO_NEED).reason == "everything fits: 23.7 GB needed, 85.4 GB free"
    assert choose_plan(gpu(16), TURBO_NEED).reason == (
        "the text encoder (8.0 GB) does not fit beside the rest: 15.6 GB needed, 16.6 GB free"
    )
    assert choose_plan(gpu(12), TURBO_NEED).reason == (
        "neither the text encoder (8.0 GB) nor 13 of the transformer's 30 layers (4.6 GB) fit beside the rest and both "
        "stay in host memory; copying the layers takes 0.18 s a step at 25 GB/s, unless computing takes longer: "
        "11.7 GB needed, 12.3 GB free. ZIMAGE_PRECISION=fp8 would keep the whole transformer on the card (6.7 GB "
        "instead of 12.3 GB, and a picture that is not quite exact)"
    )
    assert "; and pictures are decoded in tiles, since one piece does not fit" in choose_plan(gpu(6), TURBO_NEED).reason


def test_each_plan_needs_less_than_the_one_before_and_none_is_skipped():
    streamed = [(MemoryPlan.STREAMED, layers) for layers in range(3, 31)]
    plans = [(MemoryPlan.RESIDENT, 0), (MemoryPlan.TEXT_ENCODER_OFFLOADED, 0), *streamed, (MemoryPlan.SMALLEST, 30)]
    needs = [TURBO_NEED.of(*plan) for plan in plans]
    assert needs == sorted(needs, reverse=True)
    for plan, need_bytes in zip(plans, needs, strict=True):
        choice = choose_plan(replace(gpu(80), free_bytes=need_bytes + 600_000_000), TURBO_NEED)
        assert (choice.plan, choice.streamed_layers) == plan


def test_what_a_picture_takes_is_what_was_measured():
    """On an H100 in bf16 (torch 2.11): the peak of the VAE and of the transformer, beside their weights, in MB."""
    measured = {512: (639, 187), 768: (1436, 347), 1024: (2552, 560), 1536: (5741, 1182), 2048: (10204, 2053)}
    for side, (decoding, sampling) in measured.items():
        need = memory_need(TURBO_SIZES, (side, side), 2)
        assert need.working_bytes / 1e6 == pytest.approx(decoding + sampling, rel=0.02)
        mosaic = side**2 * 16 / 1e6
        assert need.tiled_working_bytes / 1e6 == pytest.approx(639 + sampling + mosaic, rel=0.02)


@pytest.mark.parametrize(
    ("card", "side", "pictures", "plan"),
    [
        (gpu(24), 1024, 1, MemoryPlan.RESIDENT),
        (gpu(24), 1024, 4, MemoryPlan.RESIDENT),  # sampled together, decoded one after the other
        (gpu(24), 2048, 1, MemoryPlan.TEXT_ENCODER_OFFLOADED),
        (gpu(16), 1536, 1, MemoryPlan.TILED),
        (gpu(12), 1024, 1, MemoryPlan.STREAMED),
        (gpu(8), 1536, 1, MemoryPlan.SMALLEST),
        (gpu(8), 1024, 1, MemoryPlan.STREAMED),
    ],
)
def test_requests_that_a_plan_cannot_do_are_known_before(card: Device, side: int, pictures: int, plan: MemoryPlan):
    budget = MemoryBudget(sizes=TURBO_SIZES, itemsize=2, free_bytes=card.free_bytes)
    chosen = choose_plan(card, TURBO_NEED)
    plans = list(MemoryPlan)
    rungs = plans[plans.index(chosen.plan) :]
    done = [
        rung for rung in rungs
        if budget.may_do(rung, rung.streamed_layers(30, chosen.streamed_layers), (side, side), pictures)
    ]  # fmt: skip
    assert done[0] is plan


def test_a_budget_reckons_in_its_precision():
    budgets = [
        MemoryBudget(sizes=TURBO_SIZES, itemsize=2, free_bytes=12 * 10**9, precision=precision)
        for precision in (Precision.EXACT, Precision.INT8)
    ]
    plan = MemoryPlan.TEXT_ENCODER_OFFLOADED
    assert [budget.may_do(plan, 0, (1024, 1024), 1) for budget in budgets] == [False, True]


def test_a_cpu_keeps_everything_and_is_asked_whether_it_fits():
    need = MemoryNeed(
        text_encoder_bytes=GIB, transformer_bytes=GIB, vae_bytes=GIB, working_bytes=GIB, tiled_working_bytes=GIB
    )
    choice = choose_plan(cpu(8), need)
    assert choice.plan is MemoryPlan.RESIDENT
    assert "nothing to move" in choice.reason
    with pytest.raises(DeviceMemoryError, match=r"needs 4\.3 GB of memory on the CPU; there is 3\.2 GB free"):
        choose_plan(cpu(3), need)


@pytest.mark.parametrize(
    ("fraction", "free_gib", "total_gib"), [(1.0, 5, 8), (0.75, 5, 6), (0.5, 3, 4)], ids=["all", "enough", "half"]
)
def test_the_first_gpu_that_torch_sees_is_read_and_what_of_it_is_allowed(
    monkeypatch: pytest.MonkeyPatch, fraction: float, free_gib: int, total_gib: int
):
    cuda = SimpleNamespace(
        is_available=lambda: True,
        mem_get_info=lambda index: (5 * GIB, 8 * GIB),
        get_device_name=lambda index: "NVIDIA GeForce RTX 4060",
        get_device_capability=lambda index: (8, 9),
        get_per_process_memory_fraction=lambda index: fraction,
        memory_reserved=lambda index: GIB,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    device = read_device()
    assert device.host_free_bytes is not None
    assert replace(device, host_free_bytes=None) == Device(
        torch_name="cuda:0", name="NVIDIA GeForce RTX 4060", free_bytes=free_gib * GIB, total_bytes=total_gib * GIB,
        capability=(8, 9),
    )  # fmt: skip
    assert device.is_gpu


@pytest.mark.parametrize(("threads", "name"), [(1, "CPU, 1 thread"), (8, "CPU, 8 threads")])
def test_without_a_gpu_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch, threads: int, name: str):
    cuda = SimpleNamespace(is_available=lambda: False)
    torch = SimpleNamespace(cuda=cuda, get_num_threads=lambda: threads)
    monkeypatch.setitem(sys.modules, "torch", torch)
    device = read_device()
    assert (device.torch_name, device.name, device.is_gpu) == ("cpu", name, False)
    assert 0 < device.free_bytes <= device.total_bytes
