"""Text embeddings of class names: prompts, synonyms, negatives.

Templates, synonyms and negatives, and scores reduced over them.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from clipsweep.projection.errors import BadInput

SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)
SHORT_TEMPLATES = ("a photo of a {}.", "a photo of the {}.", *SCENE_TEMPLATES[:2])


def sentences(name: str) -> tuple[str, ...]:
    """Prompt templates by name: sentences that a class name is put into at ``{}``.

    ``reference`` is CLIP's 80 for ImageNet plus five about scenes (the set of ViLD, MaskCLIP and
    CLIP2Scene), ``short`` is four of these, ``plain`` the bare name.

    Raises:
        BadInput: there is no set of that name.
    """
    if name == "reference":
        from open_clip import OPENAI_IMAGENET_TEMPLATES  # imported where used: it takes seconds

        return (*(template("{}") for template in OPENAI_IMAGENET_TEMPLATES), *SCENE_TEMPLATES)
    sets = {"short": SHORT_TEMPLATES, "plain": ("{}",)}
    if name not in sets:
        raise BadInput(
            "teacher.maskclip.templates",
            f"no set of templates is called {name!r}",
            "reference, short or plain",
        )
    return sets[name]


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of zero-shot segmentation: the names of each class, and negatives.

    Attributes:
        classes: for each class, its names; the best-scoring one counts for the class.
        negatives: names whose patches get no label.
        min_score: confidence that a label of each class needs, 0..1; None: that of the teacher's
            settings.
    """

    classes: Sequence[Sequence[str]]
    negatives: Sequence[str] = ()
    min_score: Sequence[float] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Vocabulary:
    """Vocabulary of zero-shot segmentation: text embeddings of all names.

    Those of class 0 first, negatives last, each negative a group of its own.

    Attributes:
        embedding: unit text embedding of each name.
        group: group of each name, rising: 0..classes-1 are the classes, the rest negatives.
        classes: number of classes.
    """

    embedding: Float32[np.ndarray, "names d"]
    group: Int64[np.ndarray, " names"]
    classes: int

    def of_classes(self) -> Float32[np.ndarray, "c d"]:
        """Class text embeddings: the unit mean over each class's names."""
        own = self.group < self.classes
        total = np.zeros((self.classes, self.embedding.shape[1]), np.float32)
        np.add.at(total, self.group[own], self.embedding[own])
        unit: Float32[np.ndarray, "c d"] = total / np.linalg.norm(total, axis=1, keepdims=True)
        return unit


def group_names(
    prompts: Sequence[Sequence[str]], negatives: Sequence[str]
) -> tuple[list[str], Int64[np.ndarray, " names"]]:
    """Lists all class names and negatives, in this order, and the group of each.

    Raises:
        BadInput: a class has no name, or a name is empty.
    """
    groups = [*prompts, *((negative,) for negative in negatives)]
    for index, names in enumerate(groups):
        if not names or not all(name.strip() for name in names):
            raise BadInput(
                f"prompts of class {index}", f"{list(names)!r} has no name or an empty one"
            )
    flat = [name for names in groups for name in names]
    return flat, np.repeat(np.arange(len(groups)), [len(names) for names in groups])


def words_of(name: str) -> list[str]:
    """Splits a class name into words: its runs of letters and digits."""
    return re.findall(r"[^\W_]+", name)


class Encoder:
    """CLIP's text encoder: sentences to embeddings.

    Its attention is causal and the embedding is read at the end-of-text token, so padding behind it
    has no effect: a batch is truncated to its longest sentence, which for class names takes a fifth
    of the time of the full 77 tokens.

    Args:
        model: open_clip model.
        tokenizer: its tokenizer.
        device: where the model is.
        batch: sentences per forward pass.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Callable[[list[str]], Tensor],
        device: torch.device,
        batch: int = 256,
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._batch = batch

    @torch.inference_mode()
    def __call__(self, sentences: Sequence[str]) -> Float[Tensor, "n d"]:
        """Text embeddings of sentences, not of unit length."""
        tokens = self._tokenizer(list(sentences)).to(self._device)
        length = tokens.argmax(-1)
        order = length.argsort(stable=True)  # alike lengths into one batch
        parts = [
            self._encode(tokens[rows], int(length[rows].max()) + 1)
            for rows in order.split(self._batch)
        ]
        whole = torch.cat(parts)
        return torch.empty_like(whole).index_copy_(0, order, whole)

    def unknown(self, name: str) -> list[str]:
        """Words of a class name outside the model's vocabulary.

        Those with a token whose embedding is zero.

        Training moves the embedding of every token that it sees; a small model's other rows may be
        kept as zeros.
        """
        table = getattr(self._model, "token_embedding", None)
        words = words_of(name)
        if table is None or not words:
            return []
        in_vocabulary = table.weight[self._tokenizer(words).to(self._device)].any(-1).all(-1)
        return [
            word for word, known in zip(words, in_vocabulary.tolist(), strict=True) if not known
        ]

    def _encode(self, tokens: Tensor, length: int) -> Tensor:
        """Encodes token ids, truncated to a length, to text embeddings.

        The model's ``encode_text``, on the first ``length`` tokens where that is the same.
        """
        model = self._model
        if (
            getattr(model, "text_pool_type", "") != "argmax"
            or getattr(model, "attn_mask", None) is None
        ):
            encoded: Tensor = model.encode_text(tokens)
            return encoded
        tokens = tokens[:, :length]
        mask = model.attn_mask[:length, :length]
        hidden = model.transformer(
            model.token_embedding(tokens) + model.positional_embedding[:length], attn_mask=mask
        )
        last = model.ln_final(
            hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(-1)]
        )
        projection: Any = model.text_projection
        projected: Any = projection(last) if callable(projection) else last @ projection
        return projected


@torch.inference_mode()
def embed(
    encode: Callable[[Sequence[str]], Float[Tensor, "n d"]],
    names: Sequence[str],
    templates: Sequence[str],
) -> Float32[np.ndarray, "names d"]:
    """Unit text embeddings of class names, averaged over prompt templates.

    The mean over templates of unit embeddings, made unit again (CLIP's recipe).

    Args:
        encode: text side of the model.
        names: what to embed.
        templates: sentences with ``{}`` where the name goes.
    """
    texts = [template.replace("{}", name) for name in names for template in templates]
    unit = F.normalize(encode(texts).float(), dim=-1)
    return (
        F.normalize(unit.unflatten(0, (len(names), len(templates))).mean(1), dim=-1).cpu().numpy()
    )


def cached(
    folder: Path | None, key: str, rows: int, make: Callable[[], Float32[np.ndarray, "rows d"]]
) -> Float32[np.ndarray, "rows d"]:
    """Caches text embeddings in a folder under a key; computes them where they are missing.

    Args:
        folder: where they are kept; None keeps nothing.
        key: digest of all that they depend on.
        rows: how many there must be.
        make: computes them.
    """
    if folder is None:
        return make()
    path = folder / f"text-{key[:24]}.npy"
    try:
        kept = np.load(path, allow_pickle=False)
        if (
            kept.dtype == np.float32
            and kept.ndim == 2
            and len(kept) == rows
            and np.isfinite(kept).all()
        ):
            return kept
    except (OSError, ValueError, EOFError):
        pass
    made = make()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=folder, prefix=".text-", suffix=".tmp", delete=False
    ) as temporary:
        np.save(temporary, made)
    Path(temporary.name).replace(path)
    return made


def group_max(
    scores: Float[Tensor, "*pixels names"], group: Int64[Tensor, " names"], groups: int
) -> Float[Tensor, "*pixels groups"]:
    """Maximum score among the names of each group."""
    best = scores.new_full((*scores.shape[:-1], groups), -torch.inf)
    return best.scatter_reduce_(-1, group.expand_as(scores), scores, "amax")
