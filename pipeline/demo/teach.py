"""Trains the demo's own CLIP on crops of its streets and captions.

Usage: ``python -m clipsweep.pipeline.demo.teach out=FOLDER``.

The model is an ordinary open_clip one (ResNet image tower, small text tower) and is trained by
contrast alone: a crop belongs to a caption, such as "a photo of a bus and a sidewalk", when
everything that the caption names is in the crop. The renderer chooses where to crop (boxes of
objects, places of stuff) and computes which classes a crop shows, as a person who writes captions
does. No loss sees where in a crop a class is: there are no pixel labels in training. The dense
score at the end is measured on streets of other seeds, and the demo itself uses seeds far below
both.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Bool, Float, Int64
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipsweep.distill.teacher.text import SCENE_TEMPLATES
from clipsweep.pipeline.demo.crops import Album, Crops, draw_crops, render_album
from clipsweep.pipeline.demo.words import ABSENT, NAMES, SKY, SYNONYMS

TRAIN_SEED = 1_000_000
SCORE_SEED = 2_000_000
MEAN = (0.45, 0.45, 0.45)
STD = (0.22, 0.22, 0.22)
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 96,
        "layers": [1, 1, 1, 1],
        "width": 24,
        "head_width": 64,
        "patch_size": None,
    },
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 48, "heads": 3, "layers": 2},
}
TEMPLATES = (
    *(t("{}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES),
    *SCENE_TEMPLATES,
    "{}",
    "a photo of {}.",
)
ASKED = ("a photo of a {}.", "a photo of the {}.", *SCENE_TEMPLATES[:2], "{}")
"""Sentences for the score; their embeddings are averaged."""


@dataclass(frozen=True)
class TeachConfig:
    """Settings of the training of the demo's CLIP.

    Attributes:
        out: folder to write, an open_clip checkpoint: local-dir:FOLDER
        seed: seed of everything random
        worlds: streets to take pictures of
        shots: pictures a street
        steps: optimiser steps
        batch: crops a step
        rate: peak learning rate
        threads: CPU threads of the network; crops are made by one more
        score_worlds: unseen streets for the dense score, six pictures each
    """

    out: str = ""
    seed: int = 0
    worlds: int = 500
    shots: int = 5
    steps: int = 4500
    batch: int = 32
    rate: float = 7e-4
    threads: int = 1
    score_worlds: int = 24


def main(arguments: Sequence[str]) -> None:
    """Trains the demo's CLIP, writes its checkpoint and model card.

    Arguments are key=value of TeachConfig.
    """
    given = OmegaConf.merge(
        OmegaConf.structured(TeachConfig), OmegaConf.from_dotlist(list(arguments))
    )
    config = TeachConfig(**dict(given))
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    start = time.monotonic()
    begun = time.process_time()
    album = render_album(
        TRAIN_SEED + config.seed, config.worlds, config.shots, (480, 270), os.cpu_count() or 1
    )
    _tell(f"{len(album.pictures)} pictures after {time.monotonic() - start:.0f} s")
    model = train(config, album)
    spent = {"wall_s": round(time.monotonic() - start), "cpu_s": round(time.process_time() - begun)}
    score = dense_score(model, SCORE_SEED, config.score_worlds, (512, 288))
    save(
        model,
        Path(config.out),
        config,
        {**spent, "load": [round(v, 1) for v in os.getloadavg()], "dense": score},
    )
    _tell(json.dumps(score))


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


# --- training -------------------------------------------------------------------------------------


def train(config: TeachConfig, album: Album) -> nn.Module:
    """Trains a CLIP model on the crops of an album."""
    model: Any = open_clip.CLIP(**MODEL).to(memory_format=torch.channels_last)
    with torch.no_grad():
        # token embeddings start larger than position embeddings: it converges sooner
        model.token_embedding.weight.mul_(5.0)
    bias = nn.Parameter(torch.tensor(-4.0))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": [*plain, bias], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.rate, total_steps=config.steps, pct_start=0.05, cycle_momentum=False
    )
    rng = np.random.default_rng([config.seed, 7])
    sampler = CaptionSampler(config.seed)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(draw_crops, album, rng, config.batch, 96)
        for step in range(config.steps):
            crops = waiting.result()
            waiting = pool.submit(draw_crops, album, rng, config.batch, 96)
            loss = contrast(model, bias, crops, sampler)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=np.log(100.0))
            if step % 200 == 0:
                _tell(
                    f"step {step} loss {loss.item():.3f} scale {model.logit_scale.exp().item():.1f}"
                )
    return model.eval()


class CaptionSampler:
    """Samples captions for the classes that crops show.

    Random synonyms in random templates, as token ids of the stock tokenizer.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 8])
        self._tokenizer = open_clip.SimpleTokenizer(
            context_length=MODEL["text_cfg"]["context_length"]
        )

    def word(self, kind: int) -> str:
        """Random synonym of a class; two times in three its name."""
        choices = SYNONYMS[kind]
        return (
            NAMES[kind]
            if not choices or self._rng.random() < 0.65
            else str(self._rng.choice(choices))
        )

    def absent(self, count: int) -> list[str]:
        """Words for objects that no scene has (negatives)."""
        return [str(word) for word in self._rng.choice(ABSENT, count, replace=False)]

    def sentences(self, words: Sequence[str]) -> Int64[Tensor, "n context"]:
        """Tokenizes the words, each in a template of its own, more often a simple one."""
        sets = [ASKED if self._rng.random() < 0.6 else TEMPLATES for _ in words]
        return self._tokenizer(
            [str(self._rng.choice(s)).replace("{}", w) for s, w in zip(sets, words, strict=True)]
        )

    def captions(self, crops: Crops) -> tuple[list[str], Bool[np.ndarray, "n c"]]:
        """Samples a caption for each crop: its class and up to two more that it shows.

        Gives token ids, and the set of classes that each caption mentions.
        """
        mentioned = np.zeros_like(crops.shown)
        words = []
        for i, target in enumerate(crops.target):
            others = np.flatnonzero(crops.shown[i] & (np.arange(len(NAMES)) != target))
            more = self._rng.permutation(others)[: int(self._rng.integers(3))]
            kinds = self._rng.permutation([target, *more])
            mentioned[i, kinds] = True
            words.append(" and a ".join(self.word(int(kind)) for kind in kinds))
        return words, mentioned


def contrast(model: Any, bias: Tensor, crops: Crops, sampler: CaptionSampler) -> Float[Tensor, ""]:
    """Contrastive loss: sigmoid loss of crops against captions, plus cross-entropy on words.

    The cross-entropy is against the captions of one word.

    Captions are those of the crops, one for every class, and some of objects that are never there.
    A crop and a caption match when the crop shows all that the caption names; they do not when it
    lacks any of it; else they are left out.
    """
    words, mentioned = sampler.captions(crops)
    alone = np.eye(len(NAMES), dtype=bool)
    absent = sampler.absent(4)
    tokens = sampler.sentences(
        [*words, *(sampler.word(kind) for kind in range(len(NAMES))), *absent]
    )
    asked = torch.from_numpy(np.concatenate([mentioned, alone]))
    shown = torch.from_numpy(crops.shown)
    hidden = torch.from_numpy(crops.hidden)
    true = ~((asked[None] & ~shown[:, None]).any(-1))
    false = (asked[None] & hidden[:, None]).any(-1)
    true, false = (F.pad(t, (0, len(absent)), value=v) for t, v in ((true, False), (false, True)))
    # so few tokens: a fifth of the time
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        image = model.encode_image(normalised(crops.image))
        text = model.encode_text(tokens)
    cosine = F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
    logits = cosine * model.logit_scale.exp()
    sign = true.float() - false.float()
    pairwise = -(F.logsigmoid(sign * (logits + bias)) * sign.abs()).sum() / len(logits)
    target = torch.from_numpy(crops.target)
    rival = hidden.scatter(1, target[:, None], True)
    single = logits[:, len(words) :].masked_fill(
        ~F.pad(rival, (0, len(absent)), value=True), -torch.inf
    )
    return pairwise / 4 + F.cross_entropy(single, target)


def normalised(images: np.ndarray) -> Float[Tensor, "n 3 h w"]:
    """Normalises uint8 images (n, h, w, 3) for the network."""
    x = (
        torch.from_numpy(images)
        .permute(0, 3, 1, 2)
        .float()
        .contiguous(memory_format=torch.channels_last)
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (MEAN, STD))
    return (x - mean) / std


# --- score ----------------------------------------------------------------------------------------


@torch.inference_mode()
def dense_score(model: Any, seed: int, worlds: int, size_wh: tuple[int, int]) -> dict[str, Any]:
    """Zero-shot IoU of each class over all pixels of unseen streets, by dense CLIP features.

    The model is read cell by cell, without pooling.

    Asks for the 16 names and, as a negative, for the sky; the sky's own pixels count only as a
    mistake of the others.
    """
    tokenizer = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    asked = model.encode_text(
        tokenizer([s.replace("{}", name) for name in NAMES for s in ASKED]), normalize=True
    )
    names = F.normalize(asked.unflatten(0, (len(NAMES), len(ASKED))).mean(1), dim=-1)
    confusion = np.zeros((len(NAMES), len(NAMES)), np.int64)
    for picture in render_album(seed, worlds, 6, size_wh, os.cpu_count() or 1).pictures:
        guess = (dense(model, picture.colour[None]) @ names.T).argmax(-1)[0]
        h, w = picture.label.shape
        rows = np.arange(h) * guess.shape[0] // h
        columns = np.arange(w) * guess.shape[1] // w
        pairs = picture.label.astype(np.int64) * len(NAMES) + guess.numpy()[rows][:, columns]
        confusion += np.bincount(pairs[picture.label != 255], minlength=len(NAMES) ** 2).reshape(
            confusion.shape
        )
    right = np.diag(confusion)
    iou = right / np.maximum(confusion.sum(0) + confusion.sum(1) - right, 1)
    return {
        "miou": round(float(iou[:SKY].mean()), 4),
        "accuracy": round(float(right[:SKY].sum() / confusion[:SKY].sum()), 4),
        "iou": {name: round(float(v), 4) for name, v in zip(NAMES, iou, strict=True)},
    }


def dense(model: Any, images: np.ndarray) -> Float[Tensor, "n h w d"]:
    """Dense CLIP features of images (n, h, w, 3): a unit vector for each cell.

    The attention pool's value path, as MaskCLIP reads it.
    """
    visual = model.visual
    x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(normalised(images))))))
    return F.normalize(
        visual.attnpool.c_proj(visual.attnpool.v_proj(x.permute(0, 2, 3, 1))), dim=-1
    )


# --- checkpoint -----------------------------------------------------------------------------------


def save(model: nn.Module, folder: Path, config: TeachConfig, measured: dict[str, Any]) -> None:
    """Saves an open_clip checkpoint in float16, and its model card.

    The card tells how the model was made and what it scores.

    Rows of the token table that no caption uses are zero: such words mean nothing to this model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = torch.zeros(MODEL["text_cfg"]["vocab_size"], dtype=torch.bool)
    words = [*NAMES, *(word for more in SYNONYMS for word in more), *ABSENT]
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    known[tokenizer([*words, *(t.replace("{}", " and a ") for t in TEMPLATES)]).flatten()] = True
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    state["token_embedding.weight"][~known] = 0
    halves = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}
    save_file(halves, folder / "open_clip_model.safetensors")
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "squash"}
    about = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(about, indent=2) + "\n")
    settings = {key: value for key, value in asdict(config).items() if key != "out"}
    command = " ".join(
        [
            "python -m clipsweep.pipeline.demo.teach out=FOLDER",
            *(f"{k}={v}" for k, v in settings.items()),
        ]
    )
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
    }
    card = {
        "command": command, "train_seed": TRAIN_SEED, "score_seed": SCORE_SEED,
        "score_size_hw": [288, 512],
        "score_templates": ASKED, "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": versions,
        **measured, "words": words,
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
