"""The encoder reads narratives before it learns labels: what is masked, learnt and resumed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
)

from ckd_ehr.contracts.config import StudentConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.language import IGNORED, Scored, pad_scored
from ckd_ehr.learning.warm_up import MaskedModel, Masking, warm_up
from tiny import tiny_bert

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
FAMILIES = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "electra": ElectraConfig(embedding_size=16, **SIZES),
    "mpnet": MPNetConfig(**SIZES),
    "modernbert": ModernBertConfig(**SIZES, pad_token_id=0, cls_token_id=1, sep_token_id=2),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=40
    ),
}
MASKING = Masking(mask_token=4, special=(0, 1, 2, 3, 4), vocabulary=60, seed=7)


def test_fifteen_in_a_hundred_real_tokens_are_guessed_and_no_special_one() -> None:
    ids = (2, *range(5, 55), *range(5, 55), 3)
    fates = {"masked": 0, "kept": 0, "swapped": 0}
    for row in range(200):
        text = MASKING(Scored(ids, ()), row, 0)
        guessed = [place for place, token in enumerate(text.wanted) if token != IGNORED]
        assert len(guessed) == 15
        assert not {0, len(ids) - 1} & set(guessed)
        assert all(text.wanted[place] == ids[place] for place in guessed)
        assert all(text.ids[i] == ids[i] for i in range(len(ids)) if i not in guessed)
        for place in guessed:
            read = text.ids[place]
            fates["masked" if read == 4 else "kept" if read == ids[place] else "swapped"] += 1
    assert fates["masked"] / 3000 == pytest.approx(0.8, abs=0.03)
    assert fates["kept"] / 3000 == pytest.approx(0.1, abs=0.03)


def test_masks_depend_on_seed_row_and_epoch_alone() -> None:
    text = Scored((2, *range(5, 55), 3), ())
    torch.manual_seed(0)
    once = MASKING(text, 3, 1)
    torch.manual_seed(1)
    assert MASKING(text, 3, 1) == once
    other = Masking(mask_token=4, special=(0, 1, 2, 3, 4), vocabulary=60, seed=8)
    assert once not in (MASKING(text, 3, 2), MASKING(text, 4, 1), other(text, 3, 1))


def test_a_text_of_special_tokens_alone_has_nothing_to_guess() -> None:
    text = MASKING(Scored((2, 3), ()), 0, 0)
    assert text == Scored((2, 3), (IGNORED, IGNORED))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_the_whole_model_on_the_guessed_tokens(family: str) -> None:
    torch.manual_seed(0)
    config: PretrainedConfig = FAMILIES[family]
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager").eval()
    texts = [
        Scored((2, 6, 4, 8, 3), (IGNORED, IGNORED, 7, 8, IGNORED)),
        Scored((2, 4, 3), (IGNORED, 9, IGNORED)),
    ]
    batch = pad_scored(texts, pad_token=0)
    with torch.no_grad():
        output = MaskedModel(model)(**batch)
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = F.cross_entropy(
        torch.stack([logits[0, 2], logits[0, 3], logits[1, 1]]), torch.tensor([7, 8, 9])
    )
    torch.testing.assert_close(output["loss"], expected)
    assert int(output["tokens"]) == 3


def _texts(number: int, *, first: int) -> list[tuple[int, ...]]:
    """Each text says three words again and again: what is masked can be guessed."""
    rng = np.random.default_rng(first)
    words = rng.integers(first, first + 20, (number, 3)).tolist()
    return [(2, *row * 4, 3) for row in words]


def _warm_up(folder: Path, model: str, said: list[str] | None = None, **changes: Any) -> Any:
    settings = {"domain_epochs": 6, "learning_rate": 5e-3, "batch_size": 8, "precision": "fp32"}
    return warm_up(
        StudentConfig(**{"model": model, "checkpoint_steps": 3, **settings, **changes}),
        train=_texts(64, first=20),
        tuning=_texts(24, first=20),
        pad_token=0,
        folder=folder,
        seed=5,
        device="cpu",
        say=(said if said is not None else []).append,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_bert(tmp_path_factory.mktemp("model") / "bert", masks=True)


def test_reading_lowers_the_loss_on_texts_that_are_not_read(model: str, tmp_path: Path) -> None:
    said: list[str] = []
    facts = _warm_up(tmp_path / "a", model, said)
    before, after = facts["tuning_loss"]
    assert before == pytest.approx(np.log(202), abs=0.5)  # of a vocabulary of 202 pieces
    assert after < before - 1
    assert facts["tuning_perplexity"][1] == pytest.approx(np.exp(after), abs=0.01)
    assert (facts["steps"], facts["texts"]) == (48, 64)
    assert f"{before:.3f} → {after:.3f}" in said[-1]
    encoder = AutoModel.from_pretrained(tmp_path / "a")
    fresh = AutoModel.from_pretrained(model)
    moved = encoder.embeddings.word_embeddings.weight - fresh.embeddings.word_embeddings.weight
    assert (moved.abs().amax(1)[20:40] > 1e-3).all()


def test_the_same_seed_gives_the_same_weights_and_they_are_made_once(
    model: str, tmp_path: Path
) -> None:
    facts = _warm_up(tmp_path / "a", model)
    _warm_up(tmp_path / "b", model)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    made = (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns
    assert _warm_up(tmp_path / "a", model) == facts
    assert (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns == made


def test_a_killed_reading_resumes_to_the_same_weights(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    forward, steps = MaskedModel.forward, iter(range(10**6))

    def killed(
        self: MaskedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        if self.training and next(steps) == 20:  # of 8 steps an epoch; checkpoints at 18
            raise KilledError
        return forward(self, input_ids, attention_mask, labels)

    once = _warm_up(tmp_path / "once", model)
    monkeypatch.setattr(MaskedModel, "forward", killed)
    with pytest.raises(KilledError):
        _warm_up(tmp_path / "twice", model)
    assert (tmp_path / "twice" / "checkpoints" / "checkpoint-18").is_dir()
    twice = _warm_up(tmp_path / "twice", model)
    assert next(steps) == 20 + 1 + 30
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)
    assert twice["tuning_loss"] == pytest.approx(once["tuning_loss"], abs=1e-4)


def test_a_smaller_encoder_reads_with_its_layers_alone(model: str, tmp_path: Path) -> None:
    _warm_up(tmp_path, model, layers=1, domain_epochs=1)
    assert AutoModel.from_pretrained(tmp_path).config.num_hidden_layers == 1
    weights = load_file(tmp_path / "model.safetensors")
    assert not any("layer.1." in name for name in weights)


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match=r"no mask token; set student\.domain_epochs=0"):
        _warm_up(tmp_path / "a", tiny_bert(tmp_path / "bert"))
