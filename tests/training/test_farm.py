import multiprocessing
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from training.farm import MAX_TOKENS, SAID_IN, Assortment, Farm, make_chunk
from training.tokenizer import END, PAD, START, vocabulary
from training.world import scene as scenes

SMALL = Assortment({(64, 64): 0.5, (48, 64): 0.5}, pictures=3)
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def chunk(tokenizer):
    return make_chunk(0, tokenizer, Assortment({(64, 48): 1.0}, pictures=40))


def same(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("pictures", "ids", "lengths"))


def test_a_chunk_is_pictures_of_one_size_and_four_captions_each(chunk):
    assert chunk.pictures.shape == (40, 48, 64, 3)
    assert chunk.pictures.dtype == np.uint8
    assert chunk.ids.shape == (40, len(SAID_IN), MAX_TOKENS)
    assert chunk.lengths.shape == (40, len(SAID_IN))
    assert len({picture.tobytes() for picture in chunk.pictures}) == 40


def test_ids_are_of_the_vocabulary_and_padded_at_the_right(chunk):
    assert chunk.ids.min() >= 0
    assert chunk.ids.max() < len(vocabulary())
    beyond = np.arange(MAX_TOKENS) >= chunk.lengths[..., None]
    assert not chunk.ids[beyond].any()
    assert chunk.ids[~beyond].all()
    assert vocabulary()[0] == PAD


def test_captions_stand_in_the_chat_templates_frame(chunk):
    for ids, length in zip(chunk.ids.reshape(-1, MAX_TOKENS), chunk.lengths.flat, strict=True):
        words = [vocabulary()[number] for number in ids[:length]]
        assert words[0] == START
        assert words[-2:] == [END, START]
        assert not {START, END, PAD} & set(words[1:-2])


def test_each_picture_is_said_twice_in_each_language(chunk):
    def is_chinese(ids):
        return any("\u4e00" <= character <= "\u9fff" for number in ids for character in vocabulary()[number])

    for captions in chunk.ids:
        assert [is_chinese(ids) for ids in captions] == [language == "zh" for language in SAID_IN]


def test_tokenizing_is_the_products(tokenizer, tokenizer_folder):
    from transformers import AutoTokenizer

    from zimage_ui.generator.encoding import tokenize

    product = AutoTokenizer.from_pretrained(tokenizer_folder)
    for text in ("", "a red star", "一颗红色星星", 'a sign saying "HI"', "zorblax"):
        assert tokenizer(text) == tokenize(product, text, 512).ids


def test_a_chunk_is_decided_by_its_number(tokenizer):
    assert same(make_chunk(7, tokenizer, SMALL), make_chunk(7, tokenizer, SMALL))
    assert not same(make_chunk(7, tokenizer, SMALL), make_chunk(8, tokenizer, SMALL))


def test_no_scene_that_is_held_out_is_drawn(tokenizer, monkeypatch):
    drawn = []

    def render(scene, width, height, seed):
        drawn.append(scene)
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr("training.farm.render", render)
    for number in range(10):
        make_chunk(number, tokenizer, Assortment({(64, 64): 1.0}, pictures=100))
    assert len(drawn) == 1_000
    assert not any(scenes.is_held_out(scene) for scene in drawn)


def test_sizes_come_by_their_shares(tokenizer):
    assortment = Assortment({(16, 16): 0.75, (24, 16): 0.25}, pictures=1)
    found = Counter(make_chunk(number, tokenizer, assortment).pictures.shape[2] for number in range(200))
    assert 130 <= found[16] <= 170  # 150 expected; 3.3 standard deviations
    assert assortment.main_size == (16, 16)


def test_the_usual_shares_are_a_whole():
    assert sum(Assortment().shares.values()) == pytest.approx(1)
    assert Assortment().main_size == (256, 256)


@pytest.mark.service
def test_the_same_chunks_from_one_process_and_from_two(tokenizer):
    expected = [make_chunk(number, tokenizer, SMALL) for number in range(8)]
    for processes in (1, 2):
        with Farm(tokenizer, processes, SMALL) as farm:
            assert all(map(same, islice(farm, 8), expected))
            farm._coming[0].result()
            assert farm.is_ready
        assert multiprocessing.active_children() == []


@pytest.mark.service
def test_a_failed_training_leaves_no_process_and_no_warning(tokenizer_folder):
    code = f"""
import sys
from pathlib import Path
from training.farm import Assortment, CaptionTokenizer, Farm

if __name__ == "__main__":
    with Farm(CaptionTokenizer(Path({str(tokenizer_folder)!r})), 2, Assortment({{(64, 64): 1.0}}, 2)) as farm:
        farm.take()
        raise SystemExit("stopped")
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (1, "", "stopped\n")


def test_rendering_processes_do_without_torch():
    code = "import sys, training.farm\nprint({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.stdout.strip() == "set()"
