"""Prompts to begin with: what each family of models draws well, said in either language of the page.

The first four are what a person sees first.
"""

from __future__ import annotations

from zimage_ui.generator.base import ExamplePrompt

# Its strengths: people and light as in photographs, and lettering, Chinese and Latin, in one picture too.
TURBO_EXAMPLES = (
    ExamplePrompt(
        en="Portrait of an old potter in her workshop, window light, 85mm photograph",
        zh="工作室里的老陶艺人肖像，双手沾满陶土，窗边自然光，85mm 摄影",
    ),
    ExamplePrompt(
        en="A small bookshop on a rainy night, neon sign reading “OPEN LATE”",
        zh="雨夜街角的小书店，霓虹招牌写着“深夜书店”，路面映着灯光",
    ),
    ExamplePrompt(
        en="A bowl of beef noodles seen from above, steam rising, food photograph",
        zh="俯拍一碗热气腾腾的牛肉面，深色木桌，美食摄影",
    ),
    ExamplePrompt(
        en="A café blackboard with “今日咖啡 Coffee of the Day” in white chalk",
        zh="咖啡馆的黑板上用白色粉笔写着“今日咖啡 Coffee of the Day”",
    ),
    ExamplePrompt(
        en="A quiet harbour at dawn, fishing boats in mist, film photograph",
        zh="清晨宁静的港口，薄雾中的渔船，柔和的光线，胶片摄影",
    ),
    ExamplePrompt(
        en="A vintage travel poster of a mountain lake, with the words “SLOW DOWN”",
        zh="复古旅行海报，高山湖泊，上方大字写着“慢慢走”",
    ),
    ExamplePrompt(
        en="A celadon vase with a branch of plum blossom, studio photograph",
        zh="一只青瓷瓶，插着一枝梅花，灰色亚麻背景，棚拍照片",
    ),
    ExamplePrompt(
        en="Macro photograph of a dewdrop on a fern, the garden upside down in it",
        zh="蕨叶上一颗露珠的微距照片，水珠里倒映着整座花园",
    ),
)

# Short, as its world is small. None is of what was kept from its training (see `training.world.scene`).
MINI_EXAMPLES = (
    ExamplePrompt(en="a red boat on the sea", zh="海上有一艘红色的船"),
    ExamplePrompt(en="three yellow stars at night", zh="星空下的三颗黄色星星"),
    ExamplePrompt(en="a green sign saying “HELLO”", zh="一块写着“HELLO”的绿色牌子"),
    ExamplePrompt(en="an orange cat in a meadow", zh="草地上有一只橙色的猫"),
    ExamplePrompt(en="a pink flower in a meadow", zh="草地上有一朵粉色的花"),
    ExamplePrompt(
        en="a big orange rocket left of a small yellow star on a purple background",
        zh="黄色小星星左边有一枚橙色的大火箭，紫色背景",
    ),
    ExamplePrompt(en="a yellow star inside a blue circle", zh="蓝色圆形里面有一颗黄色星星"),
    ExamplePrompt(en="a red circle on a blue background", zh="蓝色背景上的红色圆形"),
)
