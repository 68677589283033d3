"""Configuration of CrossVLT (Cho, Yu, Kang, IEEE TMM 2023, https://arxiv.org/abs/2408.07539).

Two strict sub-configs whose field names are those of transformers' `SwinConfig` and `BertConfig`, so that the config
of any Swin v1 or BERT checkpoint fits, and one config that joins them. Lists hold one entry per stage.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging


if TYPE_CHECKING:
    # Never run. Transformers' loader of remote code fetches the files that a file names in such lines: so all four
    # come along whichever is asked for, and a model loaded that way is saved whole again.
    from .modeling_crossvlt import CrossVLTModel  # noqa: F401
    from .pipeline_crossvlt import ReferringImageSegmentationPipeline  # noqa: F401
    from .processing_crossvlt import CrossVLTProcessor  # noqa: F401


logger = logging.get_logger(__name__)

NUM_STAGES = 4
# How much of a name must agree with that of a field (`difflib`) to look like it, and to be surely a typing error
NEAR, ALIKE = 0.8, 0.9
# The least by which a cosine is divided: CLIP's bound, whose scale is at most 100 (Radford et al., 2021, section 2.5)
MIN_TEMPERATURE = 0.01
# What a Swin checkpoint's config says of its own training, and not of the network
SWIN_TRAINING = ("image_size", "drop_path_rate")

# The channels of the logits
LABELS = {0: "background", 1: "object"}
LABELS_MESSAGE = "`num_labels` must be 2 (`id2label` names the two channels, background and object), got {}."

# What `trust_remote_code=True` finds in a checkpoint folder where this package is not installed
AUTO_MAP = {
    "AutoConfig": "configuration_crossvlt.CrossVLTConfig",
    "AutoModel": "modeling_crossvlt.CrossVLTModel",
    "AutoModelForSemanticSegmentation": "modeling_crossvlt.CrossVLTModel",
    "AutoProcessor": "processing_crossvlt.CrossVLTProcessor",
}
CUSTOM_PIPELINES = {
    "referring-image-segmentation": {
        "impl": "pipeline_crossvlt.ReferringImageSegmentationPipeline",
        "pt": ["AutoModelForSemanticSegmentation"],
        "type": "multimodal",
    }
}
IS_REMOTE_CODE = __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME)


def copy_code(folder: str | Path) -> None:
    """Put the files that `AUTO_MAP` and `CUSTOM_PIPELINES` name into a checkpoint folder.

    Code that is there and differs is replaced, with a warning. With it go, where they are available and the folder has
    none, what Inference Endpoints need. Links into the Hub's cache become files of the folder's own, so that what is
    saved there next does not change the blobs that other revisions share.
    """
    here, target = Path(__file__).parent, Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for path in target.iterdir():
        if path.is_symlink() and path.is_file() and path.resolve().parent.name == "blobs":
            write_file(path, path.read_bytes())
    for source in here.glob("*_crossvlt.py"):
        _update_code(source, target / source.name)
    for source in (here / "assets" / "endpoint").glob("*.*"):
        if not (target / source.name).exists():
            write_file(target / source.name, source.read_bytes())


def _update_code(source: Path, target: Path) -> None:
    content = source.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return
    if target.is_file():
        logger.warning(f"{target} differs from the code of this model and is replaced by it.")
    write_file(target, content)


def write_file(path: str | Path, content: bytes, sync: bool = False) -> None:
    """Write a file atomically; a link is replaced, not what it points to.

    Args:
        path: of the file.
        content: all of it.
        sync: whether to wait until it is on the disk.

    Raises:
        OSError: if that fails; the file is then as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # there only if something failed


class CarriesCode:
    """For a config with which the model's code is saved, so that the folder is loadable without this package."""

    code: ClassVar[dict[str, Any]]  # what config.json says of it

    @staticmethod
    def drop_code(kwargs: dict[str, Any]) -> None:
        """Take what a saved config says of its code out of its fields."""
        if not IS_REMOTE_CODE:  # else `pipeline` asks for the folder's code, not for ours
            for name in ("auto_map", "custom_pipelines"):
                kwargs.pop(name, None)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A config of a saved one and of fields in place of its own; of what is no field, typing errors are found.

        Args:
            config_dict: the saved one.
            kwargs: see [`PreTrainedConfig.from_dict`].

        Raises:
            ValueError: if one of `kwargs` can only be a misspelt field.
        """
        own: Any = cls
        _check_names(own, kwargs)
        for part, spec in own.sub_configs_defaults.items():
            if isinstance(kwargs.get(part), dict):
                _check_names(spec.config_class, kwargs[part])
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the config, and beside it the code of the model, so that the folder is loadable without this package.

        Args:
            save_directory: folder; it is made where there is none.
            push_to_hub: whether to upload what was saved.
            kwargs: see [`PreTrainedConfig.save_pretrained`], and of `push_to_hub`.
        """
        options = take_hub_options(save_directory, kwargs) if push_to_hub else {}
        if not Path(save_directory).is_file():  # of which Transformers tells
            copy_code(save_directory)
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        if push_to_hub:
            self.push_to_hub(**options)  # type: ignore[attr-defined]

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write what `to_json_string` gives, and where the code is."""
        values = {**json.loads(self.to_json_string(use_diff=use_diff)), **self.code}  # type: ignore[attr-defined]
        write_file(json_file_path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def code_files(folder: str | Path) -> set[str]:
    """Names of what `copy_code` has put into a folder."""
    return {path.name for path in Path(folder).glob("*_crossvlt.py")} | {"handler.py", "requirements.txt"}


def take_hub_options(folder: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `push_to_hub`, taken out of those of `save_pretrained(folder, push_to_hub=True, ...)`.

    Transformers' own `save_pretrained` uploads what has changed in the folder; code that is there already, and what
    other parts of a pipeline have saved, would be missing in the repository.
    """
    names = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
    taken = {name: options.pop(name) for name in names if name in options}
    if "max_shard_size" in options:
        taken["max_shard_size"] = options["max_shard_size"]
    return {"repo_id": options.pop("repo_id", None) or Path(folder).resolve().name, **taken}


def _check_positive(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < float("inf"):  # NaN is refused too
            raise ValueError(f"`{name}` is {getattr(config, name)}; give a number above 0.")


def _check_rates(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"`{name}` is {getattr(config, name)}; give a probability of at least 0 and below 1.")


def _check_activation(config: PreTrainedConfig) -> None:
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"`hidden_act` is {config.hidden_act!r}; give one that Transformers has, such as 'gelu'.")


def _check_stages(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        values = getattr(config, name)
        if len(values) != NUM_STAGES:
            raise ValueError(
                f"`{name}` is {values}, which has {len(values)} entries; give one for each of the {NUM_STAGES} stages."
            )


def _field_names(config_class: type[PreTrainedConfig]) -> list[str]:
    return [field.name for field in fields(config_class)]


def _nearest(config_class: type[PreTrainedConfig], name: str) -> tuple[str, bool] | None:
    """The field that a name resembles, and whether it is surely meant; None if there is none.

    A field of a sub-config is found under its own name, and never surely: other models have it in the whole config.
    """
    own = [*_field_names(config_class), "num_labels", "output_attentions"]
    if close := get_close_matches(name, own, n=1, cutoff=NEAR):
        return close[0], bool(get_close_matches(name, close, cutoff=ALIKE))
    parts = {part: _field_names(spec.config_class) for part, spec in config_class.sub_configs_defaults.items()}
    places = [
        f"{part}.{close[0]}" for part, names in parts.items() if (close := get_close_matches(name, names, 1, ALIKE))
    ]
    return ("` or `".join(places), False) if places else None


def _check_names(config_class: type[PreTrainedConfig], names: Iterable[str], *, saved: bool = False) -> None:
    """Find typing errors in arguments that are no field, which Transformers keeps as attributes or drops in silence.

    Args:
        config_class: of the config that they are given to.
        names: the arguments.
        saved: whether they are those of a saved config, whose checkpoint may be of a newer version with more fields.

    Raises:
        ValueError: if one can only be a typing error; of one that looks like it, or is saved, there is a warning.
    """
    for name in names:
        if name.startswith("_") or name in config_class.attribute_map or name in vars(PreTrainedConfig):
            continue
        if isinstance(getattr(config_class, name, None), property):
            raise ValueError(f"`{name}` is derived from other fields of {config_class.__name__}; leave it out.")
        if name in _field_names(config_class) or (nearest := _nearest(config_class, name)) is None:
            continue
        message = f"{config_class.__name__} has no field `{name}`; did you mean `{nearest[0]}`?"
        if nearest[1] and not saved:
            raise ValueError(message)
        logger.warning_once(f"{message} It has no effect.")


def _adopt(config: Any, field: str, own: type[PreTrainedConfig], library: str) -> Any:
    """Take over what the `library`'s config (an instance, or its dict) of the same architecture says of the network.

    How a Swin checkpoint was trained (`SWIN_TRAINING`) is its own affair: these fields keep the defaults here.
    """
    values = config.to_dict() if isinstance(config, PreTrainedConfig) else {} if config is None else config
    if not isinstance(values, dict):
        raise ValueError(f"`{field}` is {config!r}; give a config or a dict of its fields.")
    model_type = values.get("model_type", own.model_type)
    if model_type == own.model_type:
        return config
    if model_type != library:
        raise ValueError(f"`{field}` is of type {model_type!r}; give the config of a {library!r} checkpoint.")
    # Of our own fields only: the library's dtype, architectures, ... are those of another model
    adopted = set(own.__annotations__) - set(SWIN_TRAINING)
    return {name: value for name, value in values.items() if name in adopted}


def _take_over(config: PreTrainedConfig, kwargs: dict[str, Any], library: str | None = None) -> bool:
    """Treat arguments that are the dict of a `library`'s config, as they say themselves, as `_adopt` does.

    Returns:
        Whether they are a saved config.

    Raises:
        ValueError: if they are those of another architecture.
    """
    given = kwargs.pop("model_type", None)
    model_type = given or config.model_type
    if model_type == config.model_type:
        return given is not None
    name = type(config).__name__
    if model_type != library:
        other = f" or those of a {library!r} config" if library else ""
        raise ValueError(f"{name} must be given its own fields{other}, got those of a {model_type!r} config.")
    adopted = set(type(config).__annotations__) - set(SWIN_TRAINING)
    for field in fields(config):
        if field.name not in adopted and field.default is not MISSING:
            setattr(config, field.name, field.default)
    kwargs.clear()
    return True


@strict
class CrossVLTVisionConfig(CarriesCode, PreTrainedConfig):
    """Swin Transformer v1 encoder, divided into four stages. Field names follow `transformers.SwinConfig`.

    Args:
        image_size: side in pixels at which the weights were trained. Informative: every size is accepted.
        patch_size: side in pixels of the square that becomes one position of the first grid.
        num_channels: channels of the image.
        embed_dim: width of stage 1; each later stage is twice as wide as the one before.
        depths: Swin blocks in each stage.
        num_heads: attention heads in each stage.
        window_size: side of the attention window, in positions. It is never shrunk for a small grid.
        mlp_ratio: width of a block's MLP over the width of its stage.
        qkv_bias: whether the query, key and value projections have a bias.
        hidden_dropout_prob: dropout after the patch embedding and in the MLPs and output projections.
        attention_probs_dropout_prob: dropout of the attention weights.
        drop_path_rate: stochastic depth of the last block, on both branches; it rises linearly from 0 over all blocks.
        hidden_act: activation of the MLPs.
        use_absolute_embeddings: not supported; there so that a Swin config which has them is refused by name.
        initializer_range: standard deviation of the truncated normal from which new weights are drawn.
        layer_norm_eps: epsilon of the LayerNorms.
    """

    model_type = "crossvlt_vision_model"
    code = {
        "auto_map": {
            "AutoConfig": "configuration_crossvlt.CrossVLTVisionConfig",
            "AutoModel": "modeling_crossvlt.CrossVLTVisionModel",
        }
    }
    base_config_key = "vision_config"
    attribute_map = {"num_attention_heads": "num_heads"}

    image_size: int | list[int] | tuple[int, int] = 480
    patch_size: int = 4
    num_channels: int = 3
    embed_dim: int = 128
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 12
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.3
    hidden_act: str = "gelu"
    use_absolute_embeddings: bool = False
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        # Derived values are properties: a stored copy (as SwinConfig has) goes stale when `embed_dim` is overridden.
        for derived in ("hidden_size", "hidden_sizes", "num_layers", "num_hidden_layers"):
            kwargs.pop(derived, None)
        self.drop_code(kwargs)
        saved = _take_over(self, kwargs, "swin")
        _check_names(type(self), kwargs, saved=saved)
        self.depths, self.num_heads = list(self.depths), list(self.num_heads)
        super().__post_init__(**kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """Width of each stage: `embed_dim * 2**stage`."""
        return [self.embed_dim * 2**stage for stage in range(NUM_STAGES)]

    @property
    def hidden_size(self) -> int:
        """Width of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def num_hidden_layers(self) -> int:
        """Number of Swin blocks in all stages."""
        return sum(self.depths)

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return NUM_STAGES

    def validate_architecture(self) -> None:
        """Check what no single field's type can say."""
        _check_stages(self, "depths", "num_heads")
        sides = [self.image_size] if isinstance(self.image_size, int) else self.image_size
        if min(sides, default=0) <= 0:
            raise ValueError(f"`image_size` is {self.image_size}; give sides above 0.")
        _check_positive(self, "patch_size", "num_channels", "embed_dim", "window_size", "mlp_ratio", "layer_norm_eps")
        _check_positive(self, "initializer_range")
        _check_activation(self)
        _check_rates(self, "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
        if min(self.depths) < 1:
            raise ValueError(f"`depths` is {self.depths}; give every stage at least one block.")
        for stage, (width, heads) in enumerate(zip(self.hidden_sizes, self.num_heads, strict=True)):
            if heads < 1 or width % heads:
                raise ValueError(
                    f"`num_heads` is {self.num_heads}: {heads} heads do not divide the width {width} of stage "
                    f"{stage + 1} (`embed_dim` {self.embed_dim} times {2**stage}); give a divisor of the width."
                )
        if self.use_absolute_embeddings:
            raise ValueError("`use_absolute_embeddings` is True, but CrossVLT takes any image size; give False.")


@strict
class CrossVLTTextConfig(CarriesCode, PreTrainedConfig):
    """BERT encoder, divided into four stages. Field names follow `transformers.BertConfig`.

    Args:
        vocab_size: number of tokens of the tokenizer.
        hidden_size: width of the words.
        depths: BERT layers in each stage, behind the cross-attention block with which stages 2-4 begin. The paper's
            (6, 1, 1, 1) makes [6, 2, 2, 2] transformer layers, 12 in all like BERT-base.
        num_attention_heads: attention heads, in self-attention and in cross-attention.
        intermediate_size: width of the feed-forward blocks.
        hidden_act: activation of the feed-forward blocks.
        hidden_dropout_prob: dropout after the embeddings and in every residual branch.
        attention_probs_dropout_prob: dropout of the attention weights.
        max_position_embeddings: the most tokens an expression may have.
        type_vocab_size: number of token types.
        initializer_range: standard deviation of the normal from which new weights are drawn.
        layer_norm_eps: epsilon of the LayerNorms.
        pad_token_id: id of the padding token.
        context_dims: widths of the pixels that stages 2-4 read; None is an encoder without cross-attention. In a
            [`CrossVLTModel`] it follows from the whole config.
    """

    model_type = "crossvlt_text_model"
    code = {
        "auto_map": {
            "AutoConfig": "configuration_crossvlt.CrossVLTTextConfig",
            "AutoModel": "modeling_crossvlt.CrossVLTTextModel",
        }
    }
    base_config_key = "text_config"

    vocab_size: int = 30522
    hidden_size: int = 768
    depths: list[int] | tuple[int, ...] = (6, 1, 1, 1)
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    context_dims: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # A BERT config says how many layers its checkpoint has; how many of them are used is what `depths` says.
        kwargs.pop("num_hidden_layers", None)
        self.drop_code(kwargs)
        saved = _take_over(self, kwargs, "bert")
        _check_names(type(self), kwargs, saved=saved)
        self.depths = list(self.depths)
        self.context_dims = None if self.context_dims is None else list(self.context_dims)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a saved config; of a whole checkpoint with what the words read there, which follows from the whole."""
        values, kwargs = super().get_config_dict(*args, **kwargs)
        if values.get("model_type") == CrossVLTConfig.model_type:
            context_dims = CrossVLTConfig.from_dict(values).context_dims
            values = {
                **values,
                cls.base_config_key: {**(values.get("text_config") or {}), "context_dims": context_dims},
            }
        return values, kwargs

    @property
    def num_hidden_layers(self) -> int:
        """Number of BERT layers in all stages, cross-attention blocks not counted."""
        return sum(self.depths)

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return NUM_STAGES

    def validate_architecture(self) -> None:
        """Check what no single field's type can say."""
        _check_stages(self, "depths")
        if min(self.depths) < 0 or self.depths[0] < 1:
            raise ValueError(
                f"`depths` is {self.depths}; give stage 1 at least one BERT layer and no stage a negative number."
            )
        _check_positive(self, "vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
        _check_positive(self, "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "initializer_range")
        _check_activation(self)
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` is {self.pad_token_id}; give an id below `vocab_size` {self.vocab_size}."
            )
        _check_rates(self, "hidden_dropout_prob", "attention_probs_dropout_prob")
        if self.context_dims is not None and (len(self.context_dims) != NUM_STAGES - 1 or min(self.context_dims) < 1):
            raise ValueError(f"`context_dims` is {self.context_dims}; give a width above 0 for each of stages 2-4.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` is {self.num_attention_heads}, which does not divide `hidden_size` "
                f"{self.hidden_size}; give a divisor of it."
            )


# Swin's own sizes (Liu et al., ICCV 2021, section 3.3), with the window of the checkpoints trained at 384 px for the
# two larger ones, as the paper's base model has it. The text encoder is BERT-base in all of them.
SIZES = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 12},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "window_size": 12},
}


@strict
class CrossVLTConfig(CarriesCode, PreTrainedConfig):
    """Configuration of [`CrossVLTModel`]; the defaults are the paper's base model.

    Args:
        vision_config: [`CrossVLTVisionConfig`], a dict of its fields, or a `SwinConfig`. Of the last all fields are
            taken but `image_size` and `drop_path_rate`, which are of Swin's own training.
        text_config: [`CrossVLTTextConfig`], a dict of its fields, or a `BertConfig`.
        fusion_direction: who reads whom between the stages. "both" is the paper; "words_to_pixels" gives the words to
            the pixels but no pixels to the words, as LAVT does; "pixels_to_words" the reverse; "late" neither. The
            decoder's maps read the words in all four. A direction that is off has no parameters.
        alignment_stages: the stages whose pixels are aligned with the sentence in training: "all" (the paper), "last"
            or "none".
        alignment_dim: width of the space in which pixels and sentence are compared.
        alignment_temperature: the value at which the learnable temperature of each alignment starts, at least 0.01.
            The network never divides by less, whatever is learned or loaded.
        fusion_head_dim: width of one head of the fusion.
        decoder_hidden_size: width of the decoder; None means half the width of the last vision stage, as in the paper.
        dice_loss_weight: weight of a Dice term beside the cross-entropy; 0 (the paper) leaves it out.
        presence_head: whether the model also says if anything in the image fits the expression (`presence_logits`).
            The paper's model does not.
        presence_loss_weight: weight of the loss of the presence head.
        initializer_range: standard deviation from which the weights outside the two encoders are drawn.
        kwargs: see [`PreTrainedConfig`]. `id2label` names the channels of the logits, background and object.

    Example:
    ```python
    >>> from crossvlt_hf import CrossVLTConfig, CrossVLTModel

    >>> config = CrossVLTConfig.from_size("tiny", fusion_direction="late")
    >>> model = CrossVLTModel(config)
    ```
    """

    model_type = "crossvlt"
    code = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(CrossVLTVisionConfig),
        "text_config": SubConfigSpec(CrossVLTTextConfig),
    }
    # What Trainer leaves out of its predictions: only the logits have a value there.
    keys_to_ignore_at_inference = [
        "mask_loss",
        "dice_loss",
        "alignment_loss",
        "presence_loss",
        "presence_logits",
        "alignment_maps",
        "hidden_states",
        "text_hidden_states",
        "fusion_hidden_states",
        "attentions",
        "text_attentions",
        "cross_attentions",
        "fusion_attentions",
    ]

    # A dict, a config or None at first; a config of ours from `__post_init__` on
    vision_config: Any = None
    text_config: Any = None
    fusion_direction: Literal["both", "words_to_pixels", "pixels_to_words", "late"] = "both"
    alignment_stages: Literal["all", "last", "none"] = "all"
    alignment_dim: int = 256
    alignment_temperature: float | int = 1.0
    fusion_head_dim: int = 64
    decoder_hidden_size: int | None = None
    dice_loss_weight: float | int = 0.0
    presence_head: bool = False
    presence_loss_weight: float | int = 1.0
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.drop_code(kwargs)
        saved = _take_over(self, kwargs)
        _check_names(type(self), kwargs, saved=saved)
        named: Any = getattr(self, "id2label", None)
        if named is None and kwargs.get("num_labels") in (None, len(LABELS)):
            self.id2label, self.label2id = dict(LABELS), {name: index for index, name in LABELS.items()}
        self.vision_config = _adopt(self.vision_config, "vision_config", CrossVLTVisionConfig, "swin")
        self.text_config = _adopt(self.text_config, "text_config", CrossVLTTextConfig, "bert")
        super().__post_init__(**kwargs)
        if self.num_labels != len(LABELS):
            logger.warning(f"{LABELS_MESSAGE.format(self.num_labels)} No model can be made of this config.")

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> "CrossVLTConfig":
        """Configuration of a named size: "tiny", "small", "base" or "large" (Swin's own), with BERT-base.

        Args:
            size: the name.
            kwargs: fields to override; a dict for `vision_config` or `text_config` overrides single fields of it.

        Raises:
            ValueError: if there is no such size.
        """
        if size not in SIZES:
            raise ValueError(f"There is no size {size!r}; give one of {', '.join(SIZES)}.")
        overrides = kwargs.pop("vision_config", None) or {}
        if not isinstance(overrides, dict):
            raise ValueError(
                f"`vision_config` is a {type(overrides).__name__}; give a dict of the fields to override."
            )
        return cls(vision_config={**SIZES[size], **overrides}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All fields, those of the language encoder with what the words read, which follows from the others."""
        values = super().to_dict()
        values["text_config"]["context_dims"] = self.context_dims
        return values

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return NUM_STAGES

    @property
    def decoder_width(self) -> int:
        """Width of the decoder: `decoder_hidden_size`, or half the width of the last vision stage."""
        return self.decoder_hidden_size or self.vision_config.hidden_size // 2

    @property
    def pixels_read_words(self) -> bool:
        """Whether the vision encoder's stages pass on pixels that have read the words."""
        return self.fusion_direction in ("both", "words_to_pixels")

    @property
    def words_read_pixels(self) -> bool:
        """Whether the language stages 2-4 begin by attending to the pixels."""
        return self.fusion_direction in ("both", "pixels_to_words")

    @property
    def context_dims(self) -> list[int] | None:
        """Widths of the pixels that the language stages 2-4 read; None if they read none."""
        return self.vision_config.hidden_sizes[1:] if self.words_read_pixels else None

    @property
    def aligned_stages(self) -> list[int]:
        """Indices (from 0) of the stages that align pixels with the sentence."""
        return {"all": list(range(NUM_STAGES)), "last": [NUM_STAGES - 1], "none": []}[self.alignment_stages]

    def validate_architecture(self) -> None:
        """Check what no single field's type can say, in the sub-configs too (saving does not)."""
        self.vision_config.validate()
        self.text_config.validate()
        _check_positive(self, "alignment_dim", "alignment_temperature", "fusion_head_dim", "initializer_range")
        if self.alignment_temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"`alignment_temperature` is {self.alignment_temperature}; give at least {MIN_TEMPERATURE}, below "
                "which the network bounds it."
            )
        if self.decoder_hidden_size is not None:
            _check_positive(self, "decoder_hidden_size")
        if not self.dice_loss_weight >= 0:
            raise ValueError(f"`dice_loss_weight` is {self.dice_loss_weight}; give 0 or more.")
        # A head without a loss would never learn, and its parameters would get no gradient
        _check_positive(self, "presence_loss_weight")
        if (2 * self.vision_config.embed_dim) % self.fusion_head_dim:
            raise ValueError(
                f"`fusion_head_dim` is {self.fusion_head_dim}, which does not divide the fusion's width "
                f"{2 * self.vision_config.embed_dim} (twice `vision_config.embed_dim`); give a divisor of it."
            )


__all__ = ["CrossVLTConfig", "CrossVLTTextConfig", "CrossVLTVisionConfig"]
