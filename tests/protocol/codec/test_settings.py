"""What a study may ask of codecs and aggregation together, and what is refused with a sentence."""

from typing import Any

import pytest

from protocol.errors import SettingsError
from protocol.settings import parse
from protocol.study import StudySettings


def study(**tables: Any) -> StudySettings:
    tree = {"name": "s", "model": {"base": "b"}, "rounds": {"minimum_sites": 5}} | tables
    return parse(tree, StudySettings, source="study.toml")


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"codec": {"up": "int3"}}, "codec.up = 'int3': unknown codec"),
        ({"codec": {"up": "topk-0.9"}}, "the fraction must be from"),
        (
            {
                "codec": {"down": "int4"},
                "aggregation": {"lora": "fedex"},
                "model": {"base": "b", "quantization": "none"},
            },
            "changes of the base beside the whole",
        ),
        ({"aggregation": {"strategy": "fedadgrad"}}, "aggregation.strategy = 'fedadgrad'"),
        ({"aggregation": {"lora": "fedex"}}, "model.quantization = 'nf4' cannot hold"),
        ({"aggregation": {"lora": "flora"}}, "or aggregation.lora = 'flexlora'"),
        ({"aggregation": {"lora": "flexlora", "strategy": "fedadam"}}, "rebuilds the factors"),
        ({"aggregation": {"lora": "rolora", "strategy": "scaffold"}}, "would go stale"),
        ({"aggregation": {"strategy": "krum", "byzantine_sites": 2}}, "7 or more"),
        ({"aggregation": {"strategy": "trimmed-mean", "trim_fraction": 0.45}}, "must be over 6"),
        ({"aggregation": {"strategy": "median", "normalise_steps": True}}, "leave it out"),
    ],
)
def test_contradictions(tables: dict[str, Any], sentence: str) -> None:
    """What cannot work together is refused at submission, in words that say what would."""
    with pytest.raises(SettingsError) as caught:
        study(**tables)
    assert sentence in str(caught.value)


def test_whole_table_of_strategies() -> None:
    """Every strategy and every LoRA method by itself is accepted."""
    for strategy in ("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedyogi", "fedadam"):
        assert study(aggregation={"strategy": strategy}).aggregation.strategy == strategy
    for strategy in ("scaffold", "median", "trimmed-mean", "krum", "multi-krum"):
        assert study(aggregation={"strategy": strategy}).aggregation.strategy == strategy
    plain = {"base": "b", "quantization": "none"}
    for lora in ("factors", "flexlora", "ffa", "rolora", "fedex", "flora"):
        assert study(model=plain, aggregation={"lora": lora}).aggregation.lora == lora


def test_feedback() -> None:
    """Error feedback is on where it is needed, and where it is asked for."""
    assert not study(codec={"up": "int4"}).codec.feedback
    assert study(codec={"up": "topk-0.1+zstd"}).codec.feedback
    assert study(codec={"up": "int2", "error_feedback": "on"}).codec.feedback
    assert not study(codec={"up": "topk-0.1", "error_feedback": "off"}).codec.feedback


def test_proximal() -> None:
    """The trainer sees FedProx's mu only when the strategy is fedprox."""
    assert study().aggregation.proximal == 0.0
    assert (
        study(aggregation={"strategy": "fedprox", "proximal_mu": 0.5}).aggregation.proximal == 0.5
    )
