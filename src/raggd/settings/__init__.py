"""Typed settings: one TOML file, unknown keys refused, single values changed by ``--set``."""

from raggd.settings.read import load_settings, read_settings
from raggd.settings.sections import (
    AdapterSettings,
    BackboneSettings,
    BaseTrainingSettings,
    DataSettings,
    EvaluationSettings,
    ExamplesSettings,
    GateSettings,
    HyperTuningSettings,
    PredictorSettings,
    PromptTuningSettings,
    RetrievalSettings,
    RidgeSettings,
    ServingSettings,
    Settings,
    TargetSettings,
    TrainingSettings,
)

__all__ = [
    "AdapterSettings",
    "BackboneSettings",
    "BaseTrainingSettings",
    "DataSettings",
    "EvaluationSettings",
    "ExamplesSettings",
    "GateSettings",
    "HyperTuningSettings",
    "PredictorSettings",
    "PromptTuningSettings",
    "RetrievalSettings",
    "RidgeSettings",
    "ServingSettings",
    "Settings",
    "TargetSettings",
    "TrainingSettings",
    "load_settings",
    "read_settings",
]
