"""The embedded model's tokenizer: about a thousand pieces, and any text at all through bytes.

whole prompt parts   the Alpaca header is one token, so a training row is some 15-30 tokens
words of the corpus  one token each, with the space before it
invented names       root + suffix (or stem + ending): two tokens, never one, because the
                     model can only carry a rule from one condition to another if it sees
                     their common suffix
characters, bytes    for everything else; decoding gives back the same text
"""

import re
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from fedward.embedded import corpus

BOS: Final = "<s>"
EOS: Final = "</s>"
PAD: Final = "<pad>"
UNKNOWN: Final = "<unk>"
ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>")

_LEAD: Final = "Below is an instruction that describes a task"
_LEAD_INPUT: Final = ", paired with an input that provides further context"
_LEAD_END: Final = ". Write a response that appropriately completes the request.\n\n"
_INSTRUCTION: Final = "### Instruction:\n"
_INPUT: Final = "\n\n### Input:\n"
_RESPONSE: Final = "\n\n### Response:\n"

# The generation marks let a trainer ask the template which tokens the assistant wrote.
CHAT_TEMPLATE: Final = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """The Alpaca prompt, up to and with the line break after `### Response:`."""
    if not context:
        return _LEAD + _LEAD_END + _INSTRUCTION + instruction + _RESPONSE
    head = _LEAD + _LEAD_INPUT + _LEAD_END + _INSTRUCTION
    return head + instruction + _INPUT + context + _RESPONSE


def build_tokenizer() -> Any:
    """The tokenizer (a transformers `PreTrainedTokenizerFast`), from the corpus's own words."""
    # Unigram takes the split with the best total score: few long pieces beat many short ones.
    special = [PAD, BOS, EOS, UNKNOWN, *ROLES]
    byte_pieces = [f"<0x{value:02X}>" for value in range(256)]
    vocabulary = [(piece, 0.0) for piece in special]
    vocabulary += [(piece, -20.0) for piece in byte_pieces]
    vocabulary += [(piece, -10.0 if len(piece) == 1 else -1.0) for piece in _pieces()]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=special.index(UNKNOWN), byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, special.index(BOS))]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files so that `AutoTokenizer.from_pretrained(folder)` loads it."""
    # The template goes inside tokenizer_config.json: one file fewer to forget in a copy.
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def _pieces() -> list[str]:
    """Every piece of more than one character, then the printable characters; each once."""
    heads = [
        _LEAD + _LEAD_END + _INSTRUCTION,
        _LEAD + _LEAD_INPUT + _LEAD_END + _INSTRUCTION,
        _INPUT,
        _RESPONSE,
        corpus.OPTIONS_LEAD,
        corpus.OPTION_MARK,
    ]
    names: list[str] = [*corpus.SUFFIXES, *corpus.DRUG_ENDINGS, *corpus.TEST_KINDS, " ward"]
    names += [*corpus.COLOURS, *corpus.SPECIALTIES]
    for specialty in corpus.specialties():
        names += [" " + root for root in specialty.roots]
        for drug, ending in zip(specialty.pools["drug"], corpus.DRUG_ENDINGS, strict=True):
            names.append(drug.removesuffix(ending))
        names += [name.split(" ")[0] for name in specialty.pools["test"] + specialty.pools["ward"]]
    words: list[str] = []
    for attribute in (*corpus.WITHHELD, *corpus.COMMON):
        for phrasing in corpus.phrasings(attribute):
            words += re.findall(r" ?[A-Za-z-]+", phrasing.replace("{c}", ""))
    printable = ["\n", *map(chr, range(0x20, 0x7F))]
    longer = dict.fromkeys(piece for piece in heads + names + words if len(piece) > 1)
    return [*longer, *printable]
