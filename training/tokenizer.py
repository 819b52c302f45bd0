"""The small model's tokenizer: one token a word, a Chinese character, or a letter to be written.

Its vocabulary is what the captions are made of, read off their own tables, and every word beyond it is one `<unk>`.
Lettering is spelled: capitals stand alone, and so does each letter in quotation marks, where small letters become
capitals, so that HELLO, "HELLO" and "hello" are spelled alike. One word right behind a word of writing is read as if it
stood in quotation marks ("a sign saying hello"), and so is "stop" before "sign". It is one `tokenizer.json`, which
every version of the tokenizers library reads alike.
"""

from __future__ import annotations

import json
import re
import string
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from training.world import words_en, words_zh
from training.world.captions import known_texts
from training.world.unwritable import LONGEST_SPELLED
from training.world.vocabulary import GLYPHS

PAD, UNKNOWN, START, END = "<|pad|>", "<unk>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, UNKNOWN, START, END)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.content + '<|im_end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>' }}"
    "{%- endif %}"
)
MAX_TOKENS = 512

# A quotation longer than this is speech, not lettering.
_MAX_QUOTED = 24
_LETTER, _SIGN = "[A-Za-z]", "[A-Za-z0-9]"
_OPENING, _CLOSING = "“", "”"
# What stands before "sign" and is the lettering of one.
_ROAD_SIGNS = ("stop", "exit", "open", "closed", "danger", "sale", "taxi", "yield")
# Marks in front of a prompt in small letters, of one all in capitals, and of a word to be written (private characters).
_CALM, _SHOUTING, _WRITTEN = "\ue000", "\ue001", "\ue002"


def build_tokenizer(folder: Path) -> None:
    """Write the tokenizer to `folder`, as `AutoTokenizer` and diffusers load it."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": MAX_TOKENS,
        "pad_token": PAD,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def make_tokenizer() -> Tokenizer:
    """The tokenizer, without a chat template."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary())}, unk_token=UNKNOWN))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


@cache
def vocabulary() -> tuple[str, ...]:
    """All tokens in the order of their ids: the special ones, then the sorted words, characters, letters and signs."""
    normalizer, pre_tokenizer = _normalizer(), _pre_tokenizer()
    texts = (normalizer.normalize_str(text) for text in known_texts())
    words = {word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text)}
    return SPECIAL_TOKENS + tuple(sorted(words | set(GLYPHS) | {'"'}))


def _without_shouting() -> list[normalizers.Normalizer]:
    """Small letters for a prompt all in capitals, but for its quotations: it is words then, not lettering.

    One word that no caption has stays as it is, and so do capitals among Chinese, where they are names or lettering.
    A mark at the front says whether the prompt is such a one; from it, each match begins where the one before ended.
    """
    replace = normalizers.Replace
    words = sorted({word.upper() for text in known_texts() for word in re.findall("[a-z]+", text.lower())})
    quotation = f"{_OPENING}[^{_CLOSING}]*{_CLOSING}"
    between = f"(?:[^A-Z{_OPENING}]|{quotation})"
    # Atomic: no other way to match is worth a search, and 40,000 signs would reach the library's limit of retries.
    several = f"(?>{between}*)[A-Z]+(?>{between}+)[A-Z]"
    known = f"(?>{between}*)(?:{'|'.join(words)})(?>{between}*)\\z"
    capitals = rf"(?:[^\p{{Ll}}\p{{Han}}{_OPENING}]|{quotation})*\z"
    return [
        replace(Regex(f"[{_CALM}{_SHOUTING}{_WRITTEN}]"), " "),
        normalizers.Prepend(_CALM),
        replace(Regex(f"{_CALM}(?={capitals})(?={several}|{known})"), _SHOUTING),
        *(
            replace(
                Regex(f"(?:{_SHOUTING}|(?!\\A)\\G)(?:{quotation}|[^{letter}{_OPENING}])*?\\K{letter}"), letter.lower()
            )
            for letter in string.ascii_uppercase
        ),
        replace(Regex(f"[{_CALM}{_SHOUTING}]"), ""),
    ]


def _with_words_quoted() -> list[normalizers.Normalizer]:
    """Quotation marks around the one word that is to be written without any; all looking is bounded.

    A quotation right behind it is the lettering, and the word is not.
    """
    replace = normalizers.Replace
    word = f"{_SIGN}{{1,{LONGEST_SPELLED}}}(?![A-Za-z0-9'-])(?!\\s{{0,2}}[{_OPENING}\"'])"

    def said_behind(words: str, never: tuple[str, ...], gap: str) -> normalizers.Normalizer:
        return replace(Regex(f"{words}\\K{gap}(?=(?!(?i:{'|'.join(never)})(?!{_SIGN})){word})"), _WRITTEN)

    english = f"(?<!{_SIGN})(?i:{{}})"
    gap = r"(?:\s{1,2}|:\s{0,2})"
    surfaces, kinds = "|".join(words_en.SURFACES_READING), "|".join(words_en.KINDS_WRITTEN)
    endings = "|".join(f"{_WRITTEN}{_SIGN}{{{length}}}" for length in range(1, LONGEST_SPELLED + 1))
    return [
        said_behind(english.format("|".join(words_en.SAYING)), words_en.NEVER_SAID, gap),
        said_behind(english.format(rf"(?:{surfaces})\s{{1,2}}reading"), words_en.NEVER_SAID, gap),
        said_behind(english.format(kinds), words_en.NEVER_NAMED, gap),
        said_behind(f"(?:{'|'.join(words_zh.WRITING)})", (), r"(?:\s{0,2}|:\s{0,2})"),
        replace(Regex(f"(?<!{_SIGN})(?=(?i:{'|'.join(_ROAD_SIGNS)})\\s{{1,2}}(?i:signs?)(?!{_LETTER}))"), _WRITTEN),
        replace(Regex(f"(?<={endings})(?!{_SIGN})"), _CLOSING),
        replace(_WRITTEN, _OPENING),
    ]


def _normalizer() -> normalizers.Normalizer:
    """One kind of quotation mark, capitals only where they are lettering, and lettering in capitals only."""
    replace = normalizers.Replace
    lookbehind = "|".join(f"{_OPENING}[^{_OPENING}\"']{{{length}}}" for length in range(1, _MAX_QUOTED + 1))
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            replace("。", "."),
            replace("、", ","),
            replace(Regex("[‘’]"), "'"),
            replace(Regex("[“”„«»「」『』]"), '"'),
            # From here on, “ and ” are the two ends of a quotation; other marks stay as they are.
            replace(Regex(f"(?<!{_SIGN})[\"'](?=(?!\\s)[^\"']{{1,{_MAX_QUOTED}}}[\"'](?!{_LETTER}))"), _OPENING),
            replace(Regex(f"(?<={lookbehind})[\"']"), _CLOSING),
            *_without_shouting(),
            *_with_words_quoted(),
            # "A red star", "A Red Star": an article. "a sign saying A" is a letter.
            replace(Regex("(?:^|(?<=[.!?:] ))A(?=\\s+\\S)"), "a"),
            replace(Regex(f"(?<!{_SIGN})A(?=\\s+[A-Z][a-z])"), "a"),
            *(replace(Regex(f"{letter}(?=[a-z])"), letter.lower()) for letter in string.ascii_uppercase),
            *(
                replace(Regex(f"{letter}(?=[^{_OPENING}{_CLOSING}]{{0,{_MAX_QUOTED}}}{_CLOSING})"), letter.upper())
                for letter in string.ascii_lowercase
            ),
            replace(Regex(f"[{_OPENING}{_CLOSING}]"), '"'),
        ]
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Capitals, digits, Chinese characters and signs stand alone, other letters make words, white space goes."""
    letter = r"(?:(?![A-Z]|\p{Han})[\p{L}\p{M}])"
    token = rf"[A-Z]|\p{{N}}|\p{{Han}}|{letter}+(?:'{letter}+)*|\S"
    return pre_tokenizers.Split(Regex(token), behavior="removed", invert=True)
