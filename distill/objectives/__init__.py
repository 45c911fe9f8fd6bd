"""What the student learns from: one file an objective, and the weighted sum of those that are switched on."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.objectives.semantic import SemanticConfig, semantic

__all__ = ["ObjectivesConfig", "semantic"]


@dataclass(frozen=True)
class ObjectivesConfig:
    """The objectives of pre-training; each has a weight."""

    semantic: SemanticConfig = field(default_factory=SemanticConfig)
