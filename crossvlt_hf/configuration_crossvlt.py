"""Configuration of CrossVLT (Cho, Yu, Kang, IEEE TMM 2023, https://arxiv.org/abs/2408.07539).

The sub-configs have the field names of Transformers' `SwinConfig` and `BertConfig`, so they accept the config of any
Swin v1 or BERT checkpoint. Lists have one entry per stage.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import MISSING, fields
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME, logging
from transformers.utils.hub import create_and_tag_model_card


if TYPE_CHECKING:
    # Never executed: Transformers' loader of remote code downloads the files that these lines name, so that it has all
    # of them, whichever is requested, and can save the model completely.
    from .modeling_crossvlt import CrossVLTModel  # noqa: F401
    from .pipeline_crossvlt import ReferringImageSegmentationPipeline  # noqa: F401
    from .processing_crossvlt import CrossVLTProcessor  # noqa: F401


logger = logging.get_logger(__name__)

NUM_STAGES = 4
# Similarities (`difflib`) from which a name may be a misspelt field, and certainly is one
NEAR, ALIKE = 0.8, 0.9
# The least divisor of a cosine, as in CLIP, whose scale is at most 100 (Radford et al., 2021, section 2.5)
MIN_TEMPERATURE = 0.01
# Fields of a Swin config about its training, not its architecture
SWIN_TRAINING = ("image_size", "drop_path_rate")

CARD = "README.md"
# Files of a checkpoint's folder: those written here, and reports; not what else lies there
CHECKPOINT_FILES = (
    *("*.json", "*.safetensors", "*_crossvlt.py", "handler.py", "requirements.txt", "about.yaml", CARD, "LICENSE*"),
    *("vocab.txt", "merges.txt", "*.model"),
)
# The channels of the logits
LABELS = {0: "background", 1: "object"}
LABELS_MESSAGE = "`num_labels` must be 2 (`id2label` names the two channels, background and object), got {}."

# Where `trust_remote_code=True` finds classes in a checkpoint folder, without this package
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

# The checkpoint of this package; the card beside the weights describes its training
DEFAULT_CHECKPOINT = Path(__file__).parent / "assets" / "built_in"
BUILT_IN = "built-in"


def find_named(source: Any) -> Any:
    """The folder of the package's checkpoint for the name "built-in"; anything else unchanged.

    A folder with the name built-in is given as "./built-in".
    """
    if source != BUILT_IN or IS_REMOTE_CODE:  # a checkpoint's code comes without that folder
        return source
    if Path(BUILT_IN).is_dir():
        logger.warning(f"{BUILT_IN!r} is the checkpoint of this package; the folder of that name is './{BUILT_IN}'.")
    return DEFAULT_CHECKPOINT


def copy_code(folder: str | Path) -> None:
    """Copy the files of `AUTO_MAP` and `CUSTOM_PIPELINES` to a checkpoint folder.

    Code that differs is replaced, with a warning. The files for Inference Endpoints are added if this package has them
    and the folder has none. Links to blobs in the cache of the Hub are replaced by copies, so that saving does not
    change blobs, which revisions share.
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
        logger.warning(f"{target} differs from the code of this model and is replaced.")
    write_file(target, content)


def write_file(path: str | Path, content: bytes, sync: bool = False) -> None:
    """Write a file atomically; a link is replaced, not its target.

    Args:
        path: of the file.
        content: of the file.
        sync: whether to wait until the file is on the disk.

    Raises:
        OSError: if writing fails; an existing file is unchanged.
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
        partial.unlink(missing_ok=True)  # exists only after an error


class CarriesCode:
    """A config that saves the code of the model, so that the folder loads without this package."""

    code: ClassVar[dict[str, Any]]  # its entries in config.json

    @staticmethod
    def drop_code(kwargs: dict[str, Any]) -> None:
        """Remove the entries about code from the fields of a saved config."""
        if not IS_REMOTE_CODE:  # otherwise `pipeline` uses the code of the folder, not this package
            for name in ("auto_map", "custom_pipelines"):
                kwargs.pop(name, None)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a saved config, of a folder, a Hub id, or "built-in": see [`PreTrainedConfig.get_config_dict`]."""
        return super().get_config_dict(find_named(pretrained_model_name_or_path), **kwargs)  # type: ignore[misc]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a config from a saved one, with other values for some fields.

        Args:
            config_dict: the saved config.
            kwargs: see [`PreTrainedConfig.from_dict`].

        Raises:
            ValueError: if one of `kwargs` is certainly a misspelt field.
        """
        own: Any = cls
        _check_names(own, kwargs)
        for part, spec in own.sub_configs_defaults.items():
            if isinstance(kwargs.get(part), dict):
                _check_names(spec.config_class, kwargs[part])
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save the config and the code of the model, so that the folder loads without this package.

        Args:
            save_directory: folder, which is created if it does not exist.
            push_to_hub: whether to upload its files.
            kwargs: see [`PreTrainedConfig.save_pretrained`], and of `upload_folder`.
        """
        options = take_hub_options(save_directory, kwargs) if push_to_hub else {}
        if not Path(save_directory).is_file():  # which Transformers refuses
            copy_code(save_directory)
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        if push_to_hub:
            upload_folder(save_directory, **options)

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write the result of `to_json_string`, and the entries about code."""
        values = {**json.loads(self.to_json_string(use_diff=use_diff)), **self.code}  # type: ignore[attr-defined]
        write_file(json_file_path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def take_hub_options(folder: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    """Remove the arguments of `upload_folder` from those of `save_pretrained(folder, push_to_hub=True, ...)`.

    The upload is separate, of the whole folder: `save_pretrained` of Transformers only uploads files that it has
    changed, without existing code and files of other parts of a pipeline.
    """
    names = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
    taken = {name: options.pop(name) for name in names if name in options}
    return {"repo_id": options.pop("repo_id", None) or Path(folder).resolve().name, **taken}


def _is_of_a_checkpoint(path: Path) -> bool:
    shown = path.is_file() and not path.name.startswith(".")
    return shown and any(fnmatch(path.name, pattern) for pattern in CHECKPOINT_FILES)


def upload_folder(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: str | list[str] | None = None,
) -> None:
    """Upload the files of a checkpoint in a folder as they are, in one commit.

    Other files and subfolders, such as data in the current folder, are not uploaded.

    Args:
        folder: with a README.md, which becomes the card; without one the repository keeps its card, or gets the
            default one of Transformers.
        repo_id: of the repository, which is created if it does not exist.
        commit_message: title of the commit.
        commit_description: text of the commit.
        private: whether a new repository is private.
        token: of the Hub; None for the saved one.
        revision: branch, which is created if it does not exist; None for main.
        create_pr: whether to open a pull request.
        tags: to add to the metadata of the card.

    Raises:
        FileExistsError: if the folder is a file.
        OSError: if the Hub cannot be reached or refuses the upload.
    """
    folder = Path(folder)
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; give a folder.")
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    files: dict[str, Path | bytes] = {
        path.name: path for path in sorted(folder.iterdir()) if _is_of_a_checkpoint(path)
    }
    if tags or (CARD not in files and not api.file_exists(repo_id, CARD, revision=revision)):
        source = str(files.get(CARD, repo_id))
        card = create_and_tag_model_card(source, [tags] if isinstance(tags, str) else tags, token=token)
        files[CARD] = str(card).encode()
    api.create_commit(
        repo_id,
        [CommitOperationAdd(name, content) for name, content in files.items()],
        commit_message=commit_message or "Upload CrossVLT",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def _require(config: PreTrainedConfig, condition: bool, name: str, rule: str) -> None:
    """Raise ValueError, with the rule that a field must follow, unless a condition holds."""
    if not condition:
        raise ValueError(f"`{name}` must {rule}, got {getattr(config, name)!r}.")


def _check_positive(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        _require(config, 0 < getattr(config, name) < float("inf"), name, "be above 0")  # NaN is refused, too


def _check_rates(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        _require(config, 0 <= getattr(config, name) < 1, name, "be at least 0 and below 1")


def _check_activation(config: PreTrainedConfig) -> None:
    rule = "be an activation of Transformers, such as 'gelu'"
    _require(config, config.hidden_act in ACT2FN, "hidden_act", rule)


def _check_stages(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        _require(
            config, len(getattr(config, name)) == NUM_STAGES, name, f"have an entry for each of {NUM_STAGES} stages"
        )


def _field_names(config_class: type[PreTrainedConfig]) -> list[str]:
    return [field.name for field in fields(config_class)]


def _nearest(config_class: type[PreTrainedConfig], name: str) -> tuple[str, bool] | None:
    """The field with the most similar name, and whether the name is certainly a misspelling; None if none is similar.

    For a field of a sub-config it is never certain, since other models may have it in the whole config.
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
    """Find misspelt fields in arguments, which Transformers would keep as attributes or ignore.

    Args:
        config_class: of the config.
        names: the arguments.
        saved: whether they are from a saved config, which may have fields of a newer version.

    Raises:
        ValueError: if a name is certainly a misspelling. If it may be one, or is saved, there is a warning instead.
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
    """Convert a config of Transformers (an instance, or its dict) with the same architecture to fields of `own`.

    Fields about the training of a Swin checkpoint (`SWIN_TRAINING`) keep their defaults.
    """
    values = config.to_dict() if isinstance(config, PreTrainedConfig) else {} if config is None else config
    if not isinstance(values, dict):
        raise ValueError(f"`{field}` must be a config or a dict of its fields, got {config!r}.")
    model_type = values.get("model_type", own.model_type)
    if model_type == own.model_type:
        return config
    if model_type != library:
        raise ValueError(f"`{field}` must be the config of a {library!r} checkpoint, got one of type {model_type!r}.")
    # Without dtype, architectures, ..., which belong to another model
    adopted = set(own.__annotations__) - set(SWIN_TRAINING)
    return {name: value for name, value in values.items() if name in adopted}


def _take_over(config: PreTrainedConfig, kwargs: dict[str, Any], library: str | None = None) -> bool:
    """Convert arguments that are the dict of a config of Transformers, like `_adopt`.

    Returns:
        Whether the arguments are a saved config.

    Raises:
        ValueError: if they are from another architecture.
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
        image_size: side in pixels of the images in training. Only informative: every size is accepted.
        patch_size: side of a patch in pixels. Each patch is a position of the first grid.
        num_channels: channels of the image.
        embed_dim: width of stage 1; it doubles at each stage.
        depths: Swin blocks in each stage.
        num_heads: attention heads in each stage.
        window_size: side of the attention window, in positions. It stays the same for small grids.
        mlp_ratio: width of the MLP of a block, relative to the width of its stage.
        qkv_bias: whether the query, key and value projections have a bias.
        hidden_dropout_prob: dropout after the patch embedding and in the MLPs and output projections.
        attention_probs_dropout_prob: dropout of the attention weights.
        drop_path_rate: stochastic depth of the last block, on both branches; it increases linearly from 0.
        hidden_act: activation of the MLPs.
        use_absolute_embeddings: not supported; must be False.
        initializer_range: standard deviation of the truncated normal distribution of new weights.
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
        # Derived values are properties; copies of a SwinConfig would be wrong if `embed_dim` is overridden.
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
        """Check values and combinations of fields."""
        _check_stages(self, "depths", "num_heads")
        sides = [self.image_size] if isinstance(self.image_size, int) else self.image_size
        _require(self, min(sides, default=0) > 0, "image_size", "be above 0")
        _check_positive(self, "patch_size", "num_channels", "embed_dim", "window_size", "mlp_ratio", "layer_norm_eps")
        _check_positive(self, "initializer_range")
        _check_activation(self)
        _check_rates(self, "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
        _require(self, min(self.depths) >= 1, "depths", "be at least 1 for every stage")
        for width, heads in zip(self.hidden_sizes, self.num_heads, strict=True):
            fits = heads >= 1 and width % heads == 0
            _require(self, fits, "num_heads", f"divide the widths of the stages, {self.hidden_sizes}")
        rule = "be False, since CrossVLT takes images of any size"
        _require(self, not self.use_absolute_embeddings, "use_absolute_embeddings", rule)


@strict
class CrossVLTTextConfig(CarriesCode, PreTrainedConfig):
    """BERT encoder, divided into four stages. Field names follow `transformers.BertConfig`.

    Args:
        vocab_size: number of tokens of the tokenizer.
        hidden_size: width of the words.
        depths: BERT layers in each stage, after the cross-attention block of stages 2-4. The (6, 1, 1, 1) of the paper
            are [6, 2, 2, 2] transformer layers, 12 in total as in BERT-base.
        num_attention_heads: attention heads, in self-attention and in cross-attention.
        intermediate_size: width of the feed-forward blocks.
        hidden_act: activation of the feed-forward blocks.
        hidden_dropout_prob: dropout after the embeddings and in every residual branch.
        attention_probs_dropout_prob: dropout of the attention weights.
        max_position_embeddings: the most tokens of an expression.
        type_vocab_size: number of token types.
        initializer_range: standard deviation of the normal distribution of new weights.
        layer_norm_eps: epsilon of the LayerNorms.
        pad_token_id: id of the padding token.
        context_dims: widths of the pixels that stages 2-4 attend to; None for an encoder without cross-attention. In a
            [`CrossVLTModel`], it is derived from the whole config.
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
        # The number of layers of a BERT checkpoint; `depths` has the number that is used
        kwargs.pop("num_hidden_layers", None)
        self.drop_code(kwargs)
        saved = _take_over(self, kwargs, "bert")
        _check_names(type(self), kwargs, saved=saved)
        self.depths = list(self.depths)
        self.context_dims = None if self.context_dims is None else list(self.context_dims)
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a saved config; for a whole checkpoint, derive `context_dims` from its config."""
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
        """Number of BERT layers in all stages, without cross-attention blocks."""
        return sum(self.depths)

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return NUM_STAGES

    def validate_architecture(self) -> None:
        """Check values and combinations of fields."""
        _check_stages(self, "depths")
        rule = "be at least 1 for stage 1 and at least 0 for other stages"
        _require(self, min(self.depths) >= 0 and self.depths[0] >= 1, "depths", rule)
        _check_positive(self, "vocab_size", "hidden_size", "num_attention_heads", "intermediate_size")
        _check_positive(self, "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "initializer_range")
        _check_activation(self)
        known = self.pad_token_id is None or 0 <= self.pad_token_id < self.vocab_size
        _require(self, known, "pad_token_id", f"be None or from 0 to {self.vocab_size - 1}")
        _check_rates(self, "hidden_dropout_prob", "attention_probs_dropout_prob")
        dims = self.context_dims
        fit = dims is None or (len(dims) == NUM_STAGES - 1 and min(dims) >= 1)
        _require(self, fit, "context_dims", "have a width above 0 for each of stages 2-4")
        divides = self.hidden_size % self.num_attention_heads == 0
        _require(self, divides, "num_attention_heads", f"divide `hidden_size` {self.hidden_size}")


# The sizes of Swin (Liu et al., ICCV 2021, section 3.3). The two larger ones have the window of checkpoints for 384
# pixels, as the base model of the paper. All have BERT-base as text encoder.
SIZES = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "window_size": 12},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "window_size": 12},
}


@strict
class CrossVLTConfig(CarriesCode, PreTrainedConfig):
    """Configuration of [`CrossVLTModel`]; the defaults are the base model of the paper.

    Args:
        vision_config: [`CrossVLTVisionConfig`], a dict of its fields, or a `SwinConfig`. `image_size` and
            `drop_path_rate` of a `SwinConfig` are not used, since they belong to its training.
        text_config: [`CrossVLTTextConfig`], a dict of its fields, or a `BertConfig`.
        fusion_direction: direction of the cross-attention between the encoders: "both" (as in the paper),
            "words_to_pixels" (only pixels attend to words, as in LAVT), "pixels_to_words" (only words attend to
            pixels) or "late" (none). The maps for the decoder attend to the words in all cases. A direction that is
            off has no parameters.
        alignment_stages: stages with an alignment loss between pixels and sentence: "all" (as in the paper), "last" or
            "none".
        alignment_dim: width of the embeddings of pixels and sentence for the alignment.
        alignment_temperature: initial value of the learnable temperature of each alignment, at least 0.01. The network
            never divides by less than 0.01.
        fusion_head_dim: width of a head of the fusion.
        decoder_hidden_size: width of the decoder; None for half the width of the last vision stage, as in the paper.
        dice_loss_weight: weight of a Dice loss; 0 for none, as in the paper.
        presence_head: whether the model also predicts if the image has a target (`presence_logits`). The model of the
            paper does not.
        presence_loss_weight: weight of the loss of the presence head.
        initializer_range: standard deviation of new weights outside the encoders.
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
    # Outputs that Trainer drops from its predictions; it keeps the logits, and those of a presence head
    keys_to_ignore_at_inference = [
        "mask_loss",
        "dice_loss",
        "alignment_loss",
        "presence_loss",
        "alignment_maps",
        "hidden_states",
        "text_hidden_states",
        "fusion_hidden_states",
        "attentions",
        "text_attentions",
        "cross_attentions",
        "fusion_attentions",
    ]

    # A dict, a config or None; after `__post_init__` a config of the types above
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
            logger.warning(f"{LABELS_MESSAGE.format(self.num_labels)} This config cannot make a model.")

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> "CrossVLTConfig":
        """Make the configuration of a size: "tiny", "small", "base" or "large", as of Swin, with BERT-base.

        Args:
            size: name of the size.
            kwargs: fields to override; a dict for `vision_config` or `text_config` overrides single fields of it.

        Raises:
            ValueError: if there is no such size.
        """
        if size not in SIZES:
            raise ValueError(f"`size` must be one of {', '.join(SIZES)}, got {size!r}.")
        overrides = kwargs.pop("vision_config", None) or {}
        if not isinstance(overrides, dict):
            raise ValueError(
                f"`vision_config` must be a dict of fields to override, got a {type(overrides).__name__}."
            )
        return cls(vision_config={**SIZES[size], **overrides}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All fields; those of the language encoder include `context_dims`, which is derived from other fields."""
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
        """Whether pixels attend to words between the stages."""
        return self.fusion_direction in ("both", "words_to_pixels")

    @property
    def words_read_pixels(self) -> bool:
        """Whether words attend to pixels in stages 2-4."""
        return self.fusion_direction in ("both", "pixels_to_words")

    @property
    def context_dims(self) -> list[int] | None:
        """Widths of the pixels that words attend to in stages 2-4; None if they do not."""
        return self.vision_config.hidden_sizes[1:] if self.words_read_pixels else None

    @property
    def aligned_stages(self) -> list[int]:
        """Indices (from 0) of the stages with an alignment."""
        return {"all": list(range(NUM_STAGES)), "last": [NUM_STAGES - 1], "none": []}[self.alignment_stages]

    def validate_architecture(self) -> None:
        """Check values and combinations of fields, also of sub-configs, which saving does not check."""
        self.vision_config.validate()
        self.text_config.validate()
        _check_positive(self, "alignment_dim", "alignment_temperature", "fusion_head_dim", "initializer_range")
        rule = f"be at least {MIN_TEMPERATURE}, the least divisor of the network"
        _require(self, self.alignment_temperature >= MIN_TEMPERATURE, "alignment_temperature", rule)
        if self.decoder_hidden_size is not None:
            _check_positive(self, "decoder_hidden_size")
        _require(self, self.dice_loss_weight >= 0, "dice_loss_weight", "be at least 0")
        # With weight 0, the parameters of the head would get no gradient
        _check_positive(self, "presence_loss_weight")
        width = 2 * self.vision_config.embed_dim
        rule = f"divide the width of the fusion {width} (twice `vision_config.embed_dim`)"
        _require(self, width % self.fusion_head_dim == 0, "fusion_head_dim", rule)


__all__ = ["CrossVLTConfig", "CrossVLTTextConfig", "CrossVLTVisionConfig"]
