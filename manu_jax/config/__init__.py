"""The schema of a run's config, and how it is read; the names that other modules use."""

from manu_jax.config.audit import AuditSection
from manu_jax.config.base import AttentionForm, Count, Remat, Section, read_yaml, validate
from manu_jax.config.methods import (
    PRESETS,
    AnyMethod,
    Layers,
    LearnedMethod,
    MaskMethod,
    MethodSettings,
    RandomMethod,
    Scope,
    StatisticsMethod,
    named_method,
)
from manu_jax.config.run import (
    RunConfig,
    load_config,
    stored_config,
    to_yaml,
    validate_config,
)
from manu_jax.config.sections import (
    DataSection,
    EvaluateSection,
    FilePath,
    JudgeSection,
    MeshSection,
    ModelSection,
    Protocol,
    PublishedSection,
    ShotsSection,
    TextSize,
    VisionSize,
)
from manu_jax.config.texts import KeepTexts, TrainedKeepTexts
from manu_jax.config.training import (
    SYSTEM_PROMPT,
    TRAINED,
    LoraSection,
    NeuronsSection,
    OptimizerSection,
    PrimalDualSection,
    ReplaySection,
    StopSection,
    TowerSection,
    TrainSection,
    UnlearnSection,
)
