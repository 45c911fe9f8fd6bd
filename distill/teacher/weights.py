"""Pretrained weights and configurations of CLIP and timm models: finds and reads them.

Offline first, and never running a pickle's code.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipsweep.projection.errors import BadInput

_LOCAL = "local-dir:"
_HUB = "hf-hub:"
_CONFIG = "open_clip_config.json"
_NETWORK_WAIT_S = 5.0
_HUB_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_DIR_WEIGHTS = (*_HUB_WEIGHTS, "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """Source of a CLIP model: configuration, preprocessing and weights file.

    Attributes:
        name: open_clip name, ``hf-hub:...`` or ``local-dir:...``; also names the tokenizer.
        config: open_clip's model configuration.
        mean: RGB mean of the model's input, for values 0..1.
        std: RGB standard deviation, for values 0..1.
        checkpoint: file of the weights.
    """

    name: str
    config: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checkpoint: Path

    def digest(self) -> str:
        """Digest (sha256) of configuration, preprocessing and weights."""
        head = json.dumps([dict(self.config), self.mean, self.std], sort_keys=True)
        return hashlib.sha256(head.encode() + file_digest(self.checkpoint)).hexdigest()


def file_digest(path: Path) -> bytes:
    """Digest (sha256) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def clip_config(model: str) -> dict[str, Any]:
    """Configuration of an open_clip model, without its weights.

    ``model_cfg`` and perhaps ``preprocess_cfg``.

    Args:
        model: open_clip name, ``hf-hub:owner/name`` or ``local-dir:folder``.

    Raises:
        BadInput: there is no such model, or its configuration cannot be had.
    """
    from open_clip import get_model_config, list_models

    if model.startswith(_LOCAL):
        return _read_json(Path(model.removeprefix(_LOCAL)) / _CONFIG)
    if model.startswith(_HUB):
        return _read_json(hub_file(model.removeprefix(_HUB), (_CONFIG,)))
    config = get_model_config(model)
    if config is None:
        near = difflib.get_close_matches(model, list_models(), 3, 0.5)
        raise BadInput(
            "teacher.maskclip.model",
            f"open_clip has no {model!r}",
            f"alike: {', '.join(near) or 'none'}",
        )
    return {"model_cfg": config}


def find_clip(model: str, weights: str) -> Source:
    """Finds an open_clip model: its configuration, preprocessing and weights.

    Args:
        model: open_clip name, ``hf-hub:owner/name`` or ``local-dir:folder`` (the last two bring
            their own weights).
        weights: tag of open_clip's list, which also decides the activation, or a local checkpoint,
            whose activation is the one that the model's name implies; empty takes OpenAI's, or the
            model's own.

    Raises:
        BadInput: unknown name, tag or folder, weights neither in the local cache nor to be had, or
            given twice.
    """
    if weights and model.startswith((_LOCAL, _HUB)):
        cure = "leave teacher.maskclip.weights empty, or give the architecture's open_clip name"
        problem = f"is {weights!r}, but {model} brings its own weights"
        raise BadInput("teacher.maskclip.weights", problem, cure)
    tree = clip_config(model)
    if model.startswith(_LOCAL):
        return _source(model, tree, _weights_in(Path(model.removeprefix(_LOCAL))))
    if model.startswith(_HUB):
        return _source(model, tree, hub_file(model.removeprefix(_HUB), _HUB_WEIGHTS))
    if Path(weights).is_file():
        return _source(model, tree, Path(weights))
    return _tagged(model, tree["model_cfg"], weights or "openai")


def _tagged(model: str, config: dict[str, Any], weights: str) -> Source:
    import open_clip

    tag = open_clip.get_pretrained_cfg(model, weights)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise BadInput(
            "teacher.maskclip.weights",
            f"{weights!r} is neither a file nor a tag of {model}",
            f"tags: {known}",
        )
    config["quick_gelu"] = tag.get("quick_gelu", False)  # the activation belongs to the weights
    repository, _, name = tag["hf_hub"].rpartition("/")
    names = (f"{Path(name).stem}.safetensors", name) if name else _HUB_WEIGHTS
    return _source(model, {"model_cfg": config, "preprocess_cfg": tag}, hub_file(repository, names))


def _source(model: str, tree: Mapping[str, Any], checkpoint: Path) -> Source:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    preprocess = tree.get("preprocess_cfg", {})
    mean = preprocess.get("mean", OPENAI_DATASET_MEAN)
    std = preprocess.get("std", OPENAI_DATASET_STD)
    return Source(model, tree["model_cfg"], tuple(mean), tuple(std), checkpoint)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(
            path, f"cannot be read ({error})", "give a folder in open_clip's format"
        ) from None
    if (
        not isinstance(tree, dict)
        or not {"vision_cfg", "text_cfg"} <= tree.get("model_cfg", {}).keys()
    ):
        raise BadInput(
            path,
            "has no model_cfg with vision_cfg and text_cfg",
            "give a folder in open_clip's format",
        )
    return tree


def _weights_in(folder: Path) -> Path:
    for name in _DIR_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise BadInput(folder, "has no weights", f"it needs one of {', '.join(_DIR_WEIGHTS)}")


def hub_file(repository: str, names: tuple[str, ...]) -> Path:
    """Finds one of some files in a Hugging Face repository: in the local cache, else downloads it.

    Raises:
        BadInput: none is cached, and there is no network or no such file.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    for name in names:
        try:
            return Path(hf_hub_download(repository, name, local_files_only=True))
        except LocalEntryNotFoundError:
            continue
        except HFValidationError as error:
            raise BadInput(
                repository, f"is no repository name ({error})", "hf-hub:OWNER/NAME"
            ) from None
    where = f"{repository} ({', '.join(names)})"
    cure = "give a local file or folder, or run once with a network"
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise BadInput(where, "not in the local cache, and no network", cure)
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError:
            raise BadInput(where, "not in the local cache, and the network failed", cure) from None
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError) as error:
            raise BadInput(
                where, f"not in the local cache, and the hub answered: {error}", cure
            ) from None
    raise BadInput(where, "not in the local cache, and the hub has none of these files", cure)


def _reachable(url: str) -> bool:
    """Whether a server can be reached within seconds.

    The hub's own client would retry for half a minute.
    """
    from huggingface_hub import get_session

    answered: list[bool] = []

    def ask() -> None:
        with suppress(Exception):  # whatever stands between us and an answer
            get_session().head(url, timeout=_NETWORK_WAIT_S)
            answered.append(True)

    # a resolver may wait longer than any timeout given to it
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_NETWORK_WAIT_S)
    return bool(answered)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint safely, by name; no pickled code is executed.

    Raises:
        BadInput: the file is damaged, or a pickle that holds more than tensors.
    """
    cure = "convert it to safetensors on a machine where you trust it"
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the readers raise
        raise BadInput(
            path, f"cannot be loaded as plain weights ({str(error).splitlines()[0]})", cure
        ) from None
    if isinstance(tree, dict):
        tree = tree.get("state_dict", tree)
    if not isinstance(tree, dict) or not all(isinstance(value, Tensor) for value in tree.values()):
        raise BadInput(path, "holds no table of tensors", cure)
    return {name.removeprefix("module."): value for name, value in tree.items()}


def clip_tokenizer(source: Source) -> Callable[[list[str]], Tensor]:
    """Tokenizer of a CLIP model: CLIP's own, or the Hugging Face one of its configuration.

    Raises:
        BadInput: the latter cannot be had.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    config = source.config["text_cfg"]
    length = config.get("context_length", 77)
    options = config.get("tokenizer_kwargs") or {}
    name = config.get("hf_tokenizer_name")
    if not name:
        return SimpleTokenizer(context_length=length, **options)
    local = source.name.removeprefix(_LOCAL) if source.name.startswith(_LOCAL) else name
    try:
        return HFTokenizer(local, length, tokenizer_mode=config.get("tokenizer_mode"), **options)
    except (ImportError, OSError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise BadInput(
            source.name, f"its tokenizer {local} cannot be had ({text})", "install transformers"
        ) from None


def build_clip(source: Source) -> Any:
    """Builds an open_clip model with its weights, in float32 and evaluation mode.

    Raises:
        BadInput: the configuration makes no model, or the weights do not fit it.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        CLIP,
        CustomTextCLIP,
        convert_to_custom_text_state_dict,
        resize_pos_embed,
    )

    config = dict(source.config)
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    try:
        model = kind(**config)
    except (TypeError, AssertionError, ValueError, RuntimeError, ArithmeticError) as error:
        raise BadInput(
            source.name, f"its configuration makes no model ({error})", "correct the file"
        ) from None
    state = convert_state_dict(model, read_weights(source.checkpoint))
    if kind is CustomTextCLIP:
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # stored with and without a dimension
        own = getattr(model, name)
        if own is not None and name in state:
            state[name] = state[name].reshape(own.shape)
    resize_pos_embed(state, model)
    return fitted(model, state, source.checkpoint, source.name)


def fitted(model: nn.Module, state: Mapping[str, Tensor], checkpoint: Path, name: str) -> nn.Module:
    """Loads a state dict into a model, strictly; frozen, in float32 and evaluation mode.

    Raises:
        BadInput: a weight is missing, left over, or of another shape.
    """
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:300]
        raise BadInput(
            checkpoint, f"does not fit {name}: {text}", "give the weights' own model"
        ) from None
    return model.float().eval().requires_grad_(False)
