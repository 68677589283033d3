"""CrossVLT for Hugging Face Transformers: referring image segmentation.

Importing the package registers its classes for `AutoConfig`, `AutoModel`, `AutoModelForSemanticSegmentation`,
`AutoProcessor` and `pipeline("referring-image-segmentation")`. The default model of the pipeline is the small built-in
one, which knows some 500 words, for everyday things in photographs and for drawn shapes.

This does not import Transformers: each class is registered when the corresponding module of Transformers is imported.
"""

import logging
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import ModuleType
from typing import Any

import lazy_loader


_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names: __init__.pyi

TASK = "referring-image-segmentation"

# Subpackages that are imported on first use
_PACKAGES = (
    "benchmark",
    "data",
    "evaluation",
    "metrics",
    "prediction",
    "publishing",
    "training",
    "visualization",
    "weights",
)

# Current names of modules of version 0.1
_MOVED = {
    "cards": "publishing.card",
    "complexity": "benchmark.flops",
    "data.folder": "data.sources.folder",
    "data.hub": "data.sources.hub",
    "data.loading": "data.load",
    "data.phrasecut": "data.sources.phrasecut",
    "data.records": "data.record",
    "data.refer": "data.sources.refer",
    "conversion": "weights.original",
    "encoders": "weights.encoders",
    "evaluate_metric": "evaluation.hf_metric",
    "evidence": "publishing.facts",
    "export": "publishing.export",
    "errors": "system",
    "hub": "publishing.repository",
    "interruption": "system",
    "loading": "weights.checkpoint",
    "page": "publishing.page",
    "page.about": "publishing.page.about",
    "page.answers": "publishing.page.answers",
    "page.inputs": "publishing.page.inputs",
    "page.layout": "publishing.page.layout",
    "page.server": "publishing.page.server",
    "tokenization": "weights.vocabulary",
    "training.start": "training.build",
    "training.summary": "training.report",
    "visualization.curves": "training.curves",
    "visualization.gallery": "evaluation.gallery",
    "visualization.panels": "visualization.explanation_figure",
}


def _register_configs() -> None:
    from transformers import AutoConfig

    from .configuration_crossvlt import CrossVLTConfig, CrossVLTTextConfig, CrossVLTVisionConfig

    for config_class in (CrossVLTConfig, CrossVLTVisionConfig, CrossVLTTextConfig):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models() -> None:
    from transformers import AutoModel, AutoModelForSemanticSegmentation

    from .modeling_crossvlt import CrossVLTModel, CrossVLTTextModel, CrossVLTVisionModel

    for model_class in (CrossVLTModel, CrossVLTVisionModel, CrossVLTTextModel):
        AutoModel.register(model_class.config_class, model_class, exist_ok=True)
    AutoModelForSemanticSegmentation.register(CrossVLTModel.config_class, CrossVLTModel, exist_ok=True)


def _register_processor() -> None:
    from transformers import AutoProcessor

    from .configuration_crossvlt import CrossVLTConfig
    from .processing_crossvlt import CrossVLTProcessor

    AutoProcessor.register(CrossVLTConfig, CrossVLTProcessor, exist_ok=True)


def _register_pipeline() -> None:
    from transformers import AutoModelForSemanticSegmentation
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipeline_crossvlt import ReferringImageSegmentationPipeline
    from .weights.checkpoint import DEFAULT_CHECKPOINT

    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=ReferringImageSegmentationPipeline,
            pt_model=AutoModelForSemanticSegmentation,
            default={"model": (str(DEFAULT_CHECKPOINT), "main")},
            type="multimodal",
        )
    # The warning of Transformers about the default model, since a pipeline does not know if its model is the default
    logging.getLogger("transformers.pipelines").addFilter(_name_the_built_in)


def _name_the_built_in(record: logging.LogRecord) -> bool:
    """Let the warning of Transformers about the default model describe it."""
    from .weights.checkpoint import BUILT_IN_NOTE, DEFAULT_CHECKPOINT

    if str(record.msg).startswith(f"No model was supplied, defaulted to {DEFAULT_CHECKPOINT}"):
        record.msg = f"No model was named: {BUILT_IN_NOTE}"
    return True


class _Registrar(MetaPathFinder):
    """Runs each action once, when a module of Transformers is imported and nothing that actions import is partly so.

    Args:
        actions: by the name of a module of Transformers.
        needed: modules that actions import.
    """

    def __init__(self, actions: dict[str, Callable[[], None]], needed: Collection[str]) -> None:
        self.actions = actions
        self.needed = set(needed)
        self.watched = {*actions, *needed}
        self.importing: set[str] = set()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.watched:
            return None
        self.watched.remove(name)
        try:
            spec = find_spec(name)  # by the other finders
        finally:
            self.watched.add(name)  # whoever asks may not import it yet
        if spec and spec.loader:
            spec.loader.exec_module = partial(self.execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self.watched.discard(module.__name__)
        self.importing.add(module.__name__)
        try:
            execute(module)
        finally:
            self.importing.remove(module.__name__)
        self.act()

    def act(self) -> None:
        """Run the actions whose modules are imported."""
        for name in list(self.actions):
            if name in sys.modules and not self.importing & {name, *self.needed} and name in self.actions:
                self.importing.add(name)  # what the action imports must not begin it again
                try:
                    self.actions[name]()
                    del self.actions[name]
                finally:
                    self.importing.remove(name)


class _OldNames(MetaPathFinder, Loader):
    """Imports modules by their names of version 0.1, with a warning."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, module = name.partition(".")
        if package != __name__ or module not in _MOVED:
            return None
        return spec_from_loader(name, self, is_package=any(other.startswith(f"{module}.") for other in _MOVED))

    def exec_module(self, module: ModuleType) -> None:
        from .system import warn_of_old_name

        new = f"{__name__}.{_MOVED[module.__name__.partition('.')[2]]}"
        warn_of_old_name(module.__name__, new)
        names = vars(import_module(new))
        public = {name: value for name, value in names.items() if not name.startswith("__") or name == "__getattr__"}
        vars(module).update(public)  # with `__getattr__` for lazy names


def _register() -> None:
    """Register the classes, now or when the modules of Transformers are imported."""
    auto = "transformers.models.auto"
    actions = {
        f"{auto}.configuration_auto": _register_configs,
        f"{auto}.modeling_auto": _register_models,
        f"{auto}.processing_auto": _register_processor,
        "transformers.pipelines": _register_pipeline,
    }
    own = ("configuration", "layers", "modeling", "processing", "pipeline")
    # Transformers imports `models.auto` in the middle of `modeling_layers`, whose classes the layers need
    needed = ["transformers.modeling_layers", *(f"{__name__}.{name}_crossvlt" for name in own)]
    registrar = _Registrar(actions, needed)
    sys.meta_path.insert(0, registrar)
    sys.meta_path.append(_OldNames())
    registrar.act()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name in _MOVED or name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    return _lazy(name)


_register()
