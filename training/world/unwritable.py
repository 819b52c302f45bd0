"""Texts that people put in quotation marks and the world has no letters for: the board stays empty."""

from __future__ import annotations

import random

from training.world.vocabulary import WORDS

# More letters than this are too many for any board; up to it the model tries.
LONGEST_SPELLED = 12
_LONGEST_QUOTED = 20
_CHINESE = tuple(
    """
    你好 欢迎光临 开业大吉 慢慢走 禁止停车 新年快乐 生日快乐 图书馆 咖啡 停 小心地滑 大减价
    我爱你 红色 月亮 北京 谢谢 出口 入口 洗手间 请勿吸烟 今日特价 包子 茶
    书店 加油 春 福 恭喜发财 花店 大海 上海 中国 营业中 你好吗 前方学校
    注意安全 小吃街 面馆 火锅 水果 平安 早上好 晚安 星空 和平 一路顺风 禁止入内
    办公室 会议室 三号楼 左转 右转 向前看 电影院 音乐会
    """.split()  # noqa: SIM905 (a column of quotes would be harder to read)
)


def draw_unwritable(rng: random.Random, chinese_share: float) -> str:
    """A Chinese text, or words of more letters together than any board takes."""
    if rng.random() < chinese_share:
        return rng.choice(_CHINESE)
    while True:
        text = " ".join(rng.sample(WORDS, rng.randint(2, 4)))
        if len(text.replace(" ", "")) > LONGEST_SPELLED and len(text) <= _LONGEST_QUOTED:
            return text
