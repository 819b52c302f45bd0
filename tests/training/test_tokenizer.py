"""The tokenizer knows every caption, spells what is to be written, and is the same wherever it is loaded."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from training.tokenizer import END, PAD, SPECIAL_TOKENS, START, UNKNOWN, build_tokenizer, make_tokenizer, vocabulary
from training.world.captions import LANGUAGES, Language, caption, distracted
from training.world.scene import Lettering, Scene, draw_scene, draw_training_scene, is_held_out_word
from training.world.vocabulary import WORDS

TOKENIZER = make_tokenizer()


def tokens(text: str) -> list[str]:
    return TOKENIZER.encode(text).tokens


def is_writable(scene: Scene) -> bool:
    return not (isinstance(scene.subject, Lettering) and not scene.subject.text)


def framed(text: str) -> str:
    return f"{START}{text}{END}{START}"


def training_captions(language: Language, number: int) -> Iterator[str]:
    rng = random.Random(21)
    for _ in range(number):
        yield caption(draw_training_scene(rng), language, rng)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tokenizer"
    build_tokenizer(path)
    return path


def test_the_vocabulary_is_small_and_in_order():
    assert vocabulary()[:4] == SPECIAL_TOKENS
    assert list(vocabulary()[4:]) == sorted(set(vocabulary()[4:]))
    assert len(vocabulary()) <= 700
    assert TOKENIZER.get_vocab_size() == len(vocabulary())


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_caption_has_a_word_that_is_unknown(language: Language):
    rng = random.Random(22)
    for _ in range(5_000):
        text = caption(draw_scene(rng, is_writable), language, rng)
        assert UNKNOWN not in tokens(text), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_captions_are_short(language: Language):
    lengths = sorted(len(tokens(framed(text))) for text in training_captions(language, 3_000))
    assert lengths[len(lengths) // 2] <= 24
    assert lengths[len(lengths) * 3 // 4] <= 28
    assert lengths[len(lengths) * 19 // 20] <= 31
    assert lengths[-1] <= 60


def test_training_meets_every_word_of_the_vocabulary():
    """A word that is never met would be noise."""
    rng = random.Random(23)
    met = {PAD}
    for _ in range(60_000):
        language = rng.choice(LANGUAGES)
        text = caption(draw_training_scene(rng), language, rng)
        met.update(tokens(framed(distracted(text, language, rng))))
        if len(met) == len(vocabulary()):
            break
    assert set(vocabulary()) - met <= {"rhombuses", "parasols"}  # seldom, but met


@pytest.mark.parametrize(
    "text",
    [
        'a red sign saying "HELLO"',
        'A red sign saying "hello"',
        "a Red sign saying “Hello”",
        "a red sign saying 'hello'",
        "A Red Sign saying ‘HELLO’",
        "a red sign saying 「hello」",
        "a red sign saying 『Hello』",
        "a red sign saying ＂ＨＥＬＬＯ＂",
    ],
)
def test_all_quotations_are_spelled_alike(text: str):
    assert tokens(text) == ["a", "red", "sign", "saying", '"', "H", "E", "L", "L", "O", '"']


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a sign saying HELLO on blue", ["a", "sign", "saying", '"', "H", "E", "L", "L", "O", '"', "on", "blue"]),
        ("a sign saying A on blue", ["a", "sign", "saying", "A", "on", "blue"]),
        ("A star", ["a", "star"]),
        ("A star. A Red House", ["a", "star", ".", "a", "red", "house"]),
        ("Red, Big star", ["red", ",", "big", "star"]),
        ("写着“R2”的牌子。", ["写", "着", '"', "R", "2", '"', "的", "牌", "子", "."]),
        ("蓝色，「b」", ["蓝", "色", ",", '"', "B", '"']),
        ('the word "ab" and "c d" on a', ["the", "word", '"', "A", "B", '"', "and", '"', "C", "D", '"', "on", "a"]),
        ("don't, the cat’s red hat", [UNKNOWN, ",", "the", UNKNOWN, "red", "hat"]),
        ('a 12" star and a red cat', ["a", "1", "2", '"', "star", "and", "a", "red", "cat"]),
        ('a red cat, "a big', ["a", "red", "cat", ",", '"', "a", "big"]),
        ("zorblax 龘 🎈 café", [UNKNOWN] * 4),
        ("  a\n\tred   star  ", ["a", "red", "star"]),
        ("", []),
    ],
)
def test_how_text_is_cut(text: str, expected: list[str]):
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("A RED CIRCLE ON A BLUE BACKGROUND", "a red circle on a blue background"),
        ('A RED SIGN SAYING "HELLO YOU"', 'a red sign saying "hello you"'),
        ("CAT", "cat"),
        ("A CAT!", "a cat!"),
        ("1 CAT, 2026", "1 cat, 2026"),
        ('"OPEN" SIGN', '"open" sign'),
        ("ZORBLAX UNICORN", "zorblax unicorn"),
        ("\ue000A\ue001 CAT", "a cat"),
    ],
)
def test_a_prompt_all_in_capitals_is_read_as_words(text: str, same_as: str):
    assert tokens(text) == tokens(same_as)


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("a UFO above a house", "UFO"),
        ("HDR photo of a car", "HDR"),
        ("HELLO", "HELLO"),
        ("写着HELLO WORLD的牌子", "HELLOWORLD"),
        ('"OPEN"', "OPEN"),
    ],
)
def test_other_capitals_are_spelled(text: str, letters: str):
    assert "".join(token for token in tokens(text) if token.isupper()) == letters


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("a sign saying hello", 'a sign saying "hello"'),
        ("a Sign saying Hello", 'a sign saying "HELLO"'),
        ("A SIGN SAYING HELLO", 'a sign saying "hello"'),
        ("a sign saying HELLO, please", 'a sign saying "hello", please'),
        ("a sign saying: hello!", 'a sign saying "hello"!'),
        ("a sign with the word open", 'a sign with the word "open"'),
        ("a sign that reads stop", 'a sign that reads "stop"'),
        ("a sign that says  7up on red", 'a sign that says "7up" on red'),
        ("a poster reading red", 'a poster reading "red"'),
        ("the letter b on a sign", 'the letter "b" on a sign'),
        ("写着hello的牌子", "写着“hello”的牌子"),
        ("写着 Hello 的牌子", "写着“hello”的牌子"),
        ("牌子上写着：open", "牌子上写着“open”"),
        ("写着A的牌子", "写着“A”的牌子"),
        ("写着2026的牌子", "写着“2026”的牌子"),
        ("a stop sign", 'a "stop" sign'),
        ("A Stop Sign in the snow", 'a "stop" sign in the snow'),
        ("two exit signs", 'two "exit" signs'),
        ("a sign saying abcdefghijkl", 'a sign saying "abcdefghijkl"'),
    ],
)
def test_one_word_behind_a_word_of_writing_is_spelled(text: str, same_as: str):
    assert tokens(text) == tokens(same_as)
    assert '"' in tokens(text)


@pytest.mark.parametrize(
    "text",
    [
        "a sign saying the word",
        "a sign that says a",
        "the word on a sign",
        "the number of stars",
        "a cat reading a book",
        "a sign saying abcdefghijklm",
        "a sign saying don't",
        "a sign and the letters",
        "saying",
        "写着",
        "写着的牌子",
        "plus sign",
        "a red sign",
        "nonstop sign",
        "swords hello",
    ],
)
def test_other_words_are_not_spelled(text: str):
    assert not any(token.isupper() or token == '"' for token in tokens(text))


def test_a_quotation_behind_a_word_is_the_lettering_and_the_word_is_not():
    assert tokens('the text saying "hi"') == ["the", "text", "saying", '"', "H", "I", '"']
    assert tokens('a sign saying hello "hi"')[3:] == [UNKNOWN, '"', "H", "I", '"']


def test_words_kept_for_the_test_can_be_spelled():
    held_out = [word for word in WORDS if is_held_out_word(word)]
    assert held_out
    for word in held_out:
        assert tokens(f'a sign saying "{word.lower()}"')[4:-1] == list(word)


def test_hostile_prompts_take_no_time():
    for text in (
        '"' * 20_000,
        "a" * 40_000,
        '"a ' * 10_000,
        "A'" * 10_000,
        "A B " * 9_000,
        '"A" ' * 9_000,
        "“" * 9_000 + "”" * 9_000,
        ": " * 20_000,
        "saying " * 5_700,
        "saying a " * 4_400,
        "saying:  " * 4_400,
        "写着" * 20_000,
        "写着a" * 13_000,
        "stop sign " * 4_000,
        "sign reading " * 3_000,
    ):
        begin = perf_counter()
        tokens(text)
        assert perf_counter() - begin < 2  # 0.03 s on a quiet machine


@pytest.mark.model
def test_loading_gives_the_ids_of_building(folder: Path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    rng = random.Random(24)
    texts = [distracted(text, language, rng) for language in LANGUAGES for text in training_captions(language, 300)]
    texts += ["", "don't “Ab” 龘🎈", "<|im_end|> a red star", "A Red\nStar"]
    for kind in (AutoTokenizer, PreTrainedTokenizerFast):
        loaded = kind.from_pretrained(folder)
        assert len(loaded) == len(vocabulary())
        assert loaded.convert_ids_to_tokens(loaded.pad_token_id) == PAD
        for text in texts:
            message = [{"role": "user", "content": text}]
            prompt = loaded.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            assert prompt == framed(text)
            assert loaded(prompt).input_ids == TOKENIZER.encode(prompt).ids
        prompt = framed("a red star on a blue background")
        assert loaded(prompt, truncation=True, max_length=5).input_ids == loaded(prompt).input_ids[:5]


@pytest.mark.model
def test_saving_what_was_loaded_changes_nothing(folder: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    loaded.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == loaded.chat_template
    for text in training_captions("zh", 50):
        assert again(framed(text)).input_ids == loaded(framed(text)).input_ids


def test_building_twice_gives_the_same_files(folder: Path, tmp_path: Path):
    build_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.fixture(scope="module")
def model_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that reads with this tokenizer."""
    from zimage_ui.generator.untrained import TINY, build_untrained_model

    size = replace(TINY, text_encoder=TINY.text_encoder | {"vocab_size": len(vocabulary())})
    model = build_untrained_model(tmp_path_factory.mktemp("models") / "model", size)
    shutil.rmtree(model / "tokenizer")
    shutil.copytree(folder, model / "tokenizer")
    index = json.loads((model / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    (model / "model_index.json").write_text(json.dumps(index))
    return model


@pytest.mark.model
@pytest.mark.parametrize("prompt", ["a red circle on a blue background", "蓝色小船左边有一颗红色大星星", "zorblax"])
def test_the_stock_pipeline_and_ours_read_alike(model_folder: Path, prompt: str):
    torch: Any = pytest.importorskip("torch")
    from diffusers import ZImagePipeline

    from zimage_ui.generator.encoding import tokenize, without_last_layer
    from zimage_ui.generator.fast.text_encoder import encode_tokens
    from zimage_ui.generator.loading import load_components

    stock = ZImagePipeline.from_pretrained(model_folder, torch_dtype=torch.float32)
    components, _ = load_components(str(model_folder), progress=lambda _: None)
    ids = tokenize(components.tokenizer, prompt, 512).ids
    with torch.inference_mode():
        (theirs,), _ = stock.encode_prompt(prompt, do_classifier_free_guidance=False)
        ours = encode_tokens(without_last_layer(components.text_encoder), ids, components.device).to(torch.float32)
    assert ids == TOKENIZER.encode(framed(prompt)).ids
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_captions_and_tokens_are_quick():
    rng = random.Random(25)
    scenes = [draw_training_scene(rng) for _ in range(500)]
    begin = perf_counter()
    for scene in scenes:
        tokens(framed(caption(scene, "en", rng)))
    assert perf_counter() - begin < 500 * 0.5e-3
