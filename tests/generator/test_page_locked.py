"""Host memory is locked exactly as long as it is held, with a driver's stand-in; and does without where it must."""

import gc
import logging

import pytest
import torch

from zimage_ui.generator.page_locked import HostBuffer

pytestmark = pytest.mark.model


def test_locks_no_byte_more_and_lets_go_once_nothing_is_copied(driver):
    buffer = HostBuffer(1000, locked=True)
    assert buffer.is_locked
    assert list(driver.locked.values()) == [1000]
    view = buffer.bytes[10:20]
    del buffer
    gc.collect()
    assert driver.locked == {}
    assert driver.calls == ["lock", "synchronize", "unlock"]
    assert view.numel() == 10  # the memory itself is there as long as anybody looks at it


@pytest.mark.parametrize(("size_bytes", "locked"), [(1000, False), (0, True)])
def test_what_no_gpu_reads_is_ordinary(driver, size_bytes, locked):
    assert not HostBuffer(size_bytes, locked=locked).is_locked
    assert driver.calls == []


def test_where_locking_fails_the_memory_works_and_the_error_is_forgotten(driver, monkeypatch, caplog):
    driver.answer = 2
    reported = []

    def launch(*_, device):
        reported.append(device)
        raise RuntimeError("CUDA error: out of memory")  # of the call before

    monkeypatch.setattr(torch, "zeros", launch)
    with caplog.at_level(logging.WARNING, "zimage_ui"):
        buffer = HostBuffer(4, locked=True)
    assert not buffer.is_locked
    assert reported == ["cuda"]
    assert "could not be locked (CUDA error 2)" in caplog.text
    buffer.bytes.fill_(7)
    del buffer
    gc.collect()
    assert driver.calls == ["lock"]


def test_it_can_become_a_parameter_also_when_made_in_the_middle_of_a_job(driver):
    with torch.inference_mode():
        buffer = HostBuffer(16, locked=True)
    assert not buffer.bytes.is_inference()
