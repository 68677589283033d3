"""Make transformers' own common tests importable: download its source distribution once and add what that lacks."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers
from filelock import FileLock


BUILD = Path(__file__).parents[2] / "build"
KIT = BUILD / f"transformers-{transformers.__version__}-tests"

# What the tests import from files that are not in the source distribution
STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": """\
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
    "tests/distributed_testing_utils.py": """\
def __getattr__(name):
    def missing(*args, **kwargs):
        raise NotImplementedError(name)

    return missing
""",
    # Instead of pictures from the Hub: one made here for every address
    "utils/fetch_hub_objects_for_ci.py": """\
import hashlib
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def url_to_local_path(url, return_url_if_not_found=True):
    if not url.lower().endswith((".png", ".jpg", ".jpeg")):
        return url
    path = Path(tempfile.gettempdir()) / (hashlib.md5(url.encode()).hexdigest() + ".png")
    small = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(small).resize((640, 480), Image.BICUBIC).save(path)
    return str(path)
""",
}


def _download(folder: Path) -> Path:
    requirement = f"transformers=={transformers.__version__}"
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--quiet", "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", requirement, *options], check=True, capture_output=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / "tests"


def build() -> Path:
    """The folder to put on `sys.path`; it is made on the first call.

    Raises:
        subprocess.CalledProcessError: if the source distribution cannot be downloaded.
    """
    BUILD.mkdir(exist_ok=True)
    with FileLock(BUILD / "testkit.lock"):
        if KIT.is_dir():
            return KIT
        with tempfile.TemporaryDirectory(dir=BUILD) as temporary:
            kit = Path(temporary) / "kit"
            (kit / "tests").mkdir(parents=True)
            for file in _download(Path(temporary)).glob("*.py"):
                shutil.copy(file, kit / "tests" / file.name)
            for name, text in STUBS.items():
                (kit / name).parent.mkdir(parents=True, exist_ok=True)
                (kit / name).write_text(text)
            kit.rename(KIT)
    return KIT
