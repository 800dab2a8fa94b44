"""Tiny real things for the trainer's tests: models of three kinds, sites, signed requests."""

import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from protocol.codec import encode_payload
from protocol.envelope import Envelope, seal, unseal
from protocol.framing import Kind, receive, send
from protocol.manifest import AdapterManifest
from protocol.messages import Progress, Reply, Request, Task
from protocol.site import SiteSettings, load_site
from protocol.study import StudySettings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # after the switch: the Hugging Face libraries read it when they are imported

torch.set_num_threads(1)

_TEXT = (
    "which ward treats what drug helps with fever cough rash pain is given for the and of a dose "
    "ward one two three red blue green salve tonic pill yes no maybe patient has Below an "
    "instruction that describes task Write response appropriately completes request paired input "
    "provides further context Instruction Input Response"
)
WORDS = _TEXT.split()


def build_tokenizer() -> Any:
    """A word-level tokenizer of some 120 words; everything else is <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *dict.fromkeys(WORDS), *map(chr, range(0x21, 0x7F)), "\n"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"),
         pre_tokenizers.Punctuation("isolated")]
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def build_bpe_tokenizer() -> Any:
    """A byte-level BPE tokenizer with GPT-2's end token, trained on the test's own rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [_TEXT, *(str(row) for row in rows(40))],
        trainers.BpeTrainer(vocab_size=400, special_tokens=[end], initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token=end, bos_token=end, eos_token=end
    )


def build_model(kind: str, folder: Path, *, shards: bool = False) -> Path:
    """Write a random two-layer model of width 64 and its tokenizer to `folder`."""
    import transformers as hf

    tokenizer = build_tokenizer() if kind == "llama" else build_bpe_tokenizer()
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    wide: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
    }
    makers: dict[str, Callable[[], Any]] = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**common, **wide)),
        "qwen2": lambda: hf.Qwen2ForCausalLM(
            hf.Qwen2Config(**common, **wide, tie_word_embeddings=True)
        ),
        "gpt2": lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(**common, n_embd=64, n_layer=2, n_head=2, n_positions=512)
        ),
    }
    makers[kind]().save_pretrained(folder, **({"max_shard_size": "100KB"} if shards else {}))
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int, *, choices: bool = True) -> list[dict[str, Any]]:
    """`count` different rows; every other one is a multiple choice."""
    drugs, places = ["salve", "tonic", "pill"], ["fever", "cough", "rash", "pain"]
    made: list[dict[str, Any]] = []
    for number in range(count):
        right = number % 3
        row: dict[str, Any] = {
            "instruction": f"which drug helps with {places[number % 4]} dose {number}",
            "input": "patient has rash" if number % 5 == 0 else "",
            "output": drugs[right],
        }
        if choices and number % 2:
            row |= {"choices": drugs, "answer": right}
        made.append(row)
    return made


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@dataclass
class SiteFolder:
    """A hospital on disk, with the coordinator's key beside it."""

    home: Path
    base: Path
    name: str = "north"
    coordinator: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def write(self, *, extra: str = "", data: str | None = None, **sections: str) -> Path:
        """Write keys, data and site.toml; `extra` is TOML added at the end."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "coordinator.pem").write_bytes(
            self.coordinator.public_key().public_bytes(
                Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
            )
        )
        (self.home / "site.key").write_bytes(
            self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        (self.home / "site.key").chmod(0o600)
        if data is None:
            write_jsonl(self.home / "train.jsonl", rows(40))
            write_jsonl(self.home / "heldout.jsonl", rows(52)[40:])
            data = 'train = ["train.jsonl"]\nheldout = ["heldout.jsonl"]'
        trainer = sections.get("trainer", "")
        path = self.home / "site.toml"
        path.write_text(
            f'name = "{self.name}"\n'
            "[aggregator]\n"
            'address = "localhost:9092"\nca_certificate = "ca.pem"\n'
            'signing_key = "coordinator.pem"\n'
            '[link]\nnode_key = "node.key"\n'
            f"[data]\n{data}\n"
            f'[model]\npath = "{self.base}"\n'
            '[trainer]\nsigning_key = "site.key"\ndevice = "cpu"\nthreads = 1\n'
            f"{trainer}\n{extra}\n"
        )
        return path

    def settings(self, **kwargs: Any) -> SiteSettings:
        """Written and read back."""
        return load_site(self.write(**kwargs))


def study(**changes: Any) -> StudySettings:
    """A small study; `changes` are whole sections."""
    return StudySettings.model_validate(
        {
            "name": "trial",
            "model": {"base": "any", "quantization": "none"},
            "adapter": {"rank": 4, "alpha": 8},
            "training": {
                "steps": 3, "batch_size": 4, "learning_rate": 0.01, "max_length": 96,
            },
            "rounds": {"count": 4},
        }
        | changes
    )  # fmt: skip


def request(task: Task, settings: StudySettings, **changes: Any) -> Request:
    """A request of `settings` for site north."""
    fields = {
        "request_id": uuid.uuid4().hex,
        "study_id": f"{settings.name}-1",
        "site": "north",
        "task": task,
        "round": 1 if task is Task.TRAIN else 0,
        "settings": settings,
        "steps": settings.training.steps if task is Task.TRAIN else 0,
        "learning_rate": settings.training.learning_rate if task is Task.TRAIN else 0.0,
    }
    return Request.model_validate(fields | changes)


def with_adapter(
    asked: Request, manifest: AdapterManifest, vector: np.ndarray
) -> tuple[Request, bytes]:
    """The request with `vector` as its adapter."""
    payload, data, _ = encode_payload("fp32", vector, manifest, "adapter")
    fields = {"payload": payload, "manifest_digest": manifest.digest}
    return asked.model_copy(update=fields), data


@dataclass
class Client:
    """What a link does with the socket, and what the coordinator does with its key."""

    site: SiteFolder
    path: Path

    def connect(self) -> socket.socket:
        """A connection with a timeout."""
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(120)
        stream.connect(str(self.path))
        return stream

    def raw(self, envelope: Envelope) -> Envelope:
        """Send one request frame; its reply frame."""
        with self.connect() as stream:
            send(stream, Kind.REQUEST, envelope)
            frame = receive(stream)
        assert frame is not None, "the trainer closed the connection"
        assert frame[0] is Kind.REPLY
        return frame[1]

    def ask(self, asked: Request, payload: bytes = b"") -> tuple[Reply, bytes]:
        """A signed request; the checked reply and its payload."""
        answer = self.raw(seal(asked, payload, self.site.coordinator, context="request"))
        return self.open(answer), answer.payload

    def open(self, envelope: Envelope) -> Reply:
        """Check a reply's signature."""
        return unseal(envelope, Reply, self.site.key.public_key(), context="reply")

    def status(self) -> Progress:
        """The signed progress."""
        with self.connect() as stream:
            send(stream, Kind.STATUS, Envelope(b"", b""))
            frame = receive(stream)
        assert frame is not None
        assert frame[0] is Kind.PROGRESS
        return unseal(frame[1], Progress, self.site.key.public_key(), context="progress")


@dataclass
class Trainer:
    """A running trainer process."""

    process: subprocess.Popen[str]
    client: Client
    log: Path

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(how)
        return self.process.wait(10)
