"""Prompts to begin with: what the model draws best, in either language."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

EXAMPLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "en": (
            "a cat",
            "a red circle on a blue background",
            "three yellow stars at night",
            "a red boat on the sea",
            "a big white rocket left of a small yellow star on a purple background",
            "a pink flower in a meadow",
            "a yellow star inside a blue circle",
            'a green sign saying "HELLO"',
        ),
        "zh": (
            "一只猫",
            "蓝色背景上的红色圆形",
            "星空下的三颗黄色星星",
            "海上有一艘红色的船",
            "黄色小星星左边有一枚白色的大火箭，紫色背景",
            "草地上有一朵粉色的花",
            "蓝色圆形里面有一颗黄色星星",
            "一块写着“HELLO”的绿色牌子",
        ),
    }
)
