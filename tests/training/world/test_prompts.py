"""What people type first is made of words that the model has met."""

import re

import pytest

from training.tokenizer import UNKNOWN, make_tokenizer
from training.world.captions import LANGUAGES
from training.world.scene import is_held_out_pair, is_held_out_relation, is_held_out_word
from training.world.vocabulary import COLOURS, RELATIONS, THINGS
from zimage_ui.generator.profiles import MINI

TOKENIZER = make_tokenizer()

ENGLISH = """
a cat|a cute cat|cat|a kitten|a kitty|an orange cat|a black cat|a cat and a dog|a red cat and a blue fish|two cats
three cats|a house|a red house|a cottage in the snow|a house by the sea|a house and a tree|a small house in a meadow
a tree|a green tree|trees|four trees|a tree in the desert|a flower|a pink flower in a meadow|flowers|two flowers|a car
a red car|an automobile|a car in the city|a blue car on the street|a red car at sunset|a boat|a ship on the sea
a sailboat at sunset|a sailing boat on the ocean|a yacht on the water|a rocket|a rocket in space|a spaceship at night
a bird|a bird in the sky|a blue bird|a fish|a fish in the sea|an orange fish|a butterfly|a butterfly on a flower
a butterfly above a flower|a sun|the sun|the moon|the moon at night|a crescent moon|a star|three stars at night
a yellow star|a starry night|night sky|a cloud|a white cloud in the blue sky|clouds|a heart|a red heart|two hearts
a mountain|mountains in the snow|snowy mountain|a sunset|sunset|the sea|the ocean|a beach|a city|a city at night
a city skyline|a desert|a meadow|snow|winter|a red circle|a red circle on a blue background|a blue square
a green triangle|a yellow star inside a blue circle|a ball|an apple|a red apple|a book|a cup|a mug|an umbrella
a red balloon|balloons|a hat|a crown|a golden crown|a king's crown|a kite in the sky|a leaf|a water drop|a mushroom
a bell|an arrow|a sign saying "HELLO"|a sign that says "OPEN"|a poster with the word "LOVE"|the letter A on a sign
a photo of a cat|a cartoon cat|a cat in a hat|a picture of a house|draw a cat|a girl|a dog|a UFO above a house
A RED CIRCLE ON A BLUE BACKGROUND|A CAT|hello|HDR photo of a red car
""".strip().replace("\n", "|")
CHINESE = """
一只猫|猫|小猫|小猫咪|一只可爱的猫|一只橙色的猫|黑猫|猫和狗|一只红色的猫和一条蓝色的鱼|两只猫|三只小猫|一座房子|房子|红房子
雪地里的房子|海边的房子|房子和树|草地上的小房子|一棵树|绿色的树|大树|四棵树|沙漠里的一棵树|一朵花|草地上的一朵花|粉色的花
两朵花|鲜花|一辆汽车|红色汽车|一辆轿车|城市里的汽车|街上的汽车|小汽车|一艘船|海上的帆船|夕阳下的帆船|小船|水上的船|火箭
太空中的火箭|夜空中的火箭|一只鸟|天空中的鸟|小鸟|一条鱼|水里的鱼|海里的鱼|蝴蝶|花上的蝴蝶|一只蓝色的蝴蝶|太阳|月亮|夜晚的月亮
弯弯的月亮|星星|三颗星星|夜空中的三颗星星|星空|一朵云|白云|蓝天白云|爱心|红色爱心|两颗红心|一座山|雪山|日落|夕阳|大海|海边|沙滩
城市|城市的夜晚|沙漠|草地|草原|雪景|冬天|红色圆形|蓝色背景上的红色圆形|蓝色正方形|绿色三角形|蓝色圆圈里的黄色星星|圆|苹果
红苹果|一本书|一个杯子|茶杯|雨伞|一把红色的雨伞|气球|红气球|帽子|皇冠|金色的皇冠|天上的风筝|叶子|水滴|蘑菇|铃铛|箭头
写着“你好”的牌子|写着“HELLO”的牌子|一块牌子上写着“OPEN”|海报上写着“LOVE”|字母A的牌子|画一只猫|卡通猫|一个女孩|狗
""".strip().replace("\n", "|")


@pytest.mark.parametrize(("language", "prompts", "share"), [("en", ENGLISH, 0.04), ("zh", CHINESE, 0.04)])
def test_few_words_of_first_prompts_are_unknown(language: str, prompts: str, share: float) -> None:
    tokens = [TOKENIZER.encode(prompt).tokens for prompt in prompts.split("|")]
    assert len(tokens) >= 100, language
    flat = [token for prompt in tokens for token in prompt]
    unknown = [prompt for prompt, cut in zip(prompts.split("|"), tokens, strict=True) if UNKNOWN in cut]
    assert flat.count(UNKNOWN) / len(flat) <= share, unknown
    assert len(unknown) <= 0.15 * len(tokens), unknown


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_example_is_known_to_the_last_word(language: str) -> None:
    assert len(MINI.examples) == 8
    for example in MINI.examples:
        prompt = getattr(example, language)
        assert UNKNOWN not in TOKENIZER.encode(prompt).tokens, prompt


def test_no_example_is_of_what_was_kept_from_training() -> None:
    for example in MINI.examples:
        pairs = [pair for pair in ((t, c) for t in THINGS for c in COLOURS) if f"{pair[1]} {pair[0]}" in example.en]
        words = re.findall(r"[A-Z]+", example.en)
        assert pairs or words, example.en
        assert not any(is_held_out_pair(*pair) for pair in pairs), example.en
        assert not any(is_held_out_word(word) for word in words), example.en
        if len(pairs) == 2:
            first, second = sorted((thing for thing, _ in pairs), key=example.en.index)
            (relation,) = (relation for relation in RELATIONS if f" {relation} " in example.en)
            assert not is_held_out_relation(first, relation, second), example.en
