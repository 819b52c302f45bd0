"""A stand-in for the part of CUDA's driver that locks pages."""

from __future__ import annotations


class Driver:
    """Stands in for `torch.cuda.cudart()`."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.locked: dict[int, int] = {}
        self.calls: list[str] = []

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        self.calls.append("lock")
        if not self.answer:
            self.locked[address] = size_bytes
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
        self.calls.append("unlock")
        del self.locked[address]
        return 0
