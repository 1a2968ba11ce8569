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
    "load_settings",
    "read_settings",
]
