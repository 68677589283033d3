"""Publishing, and loading what was published where this package is not installed."""

import base64
import copy
import io
import itertools
import json
import math
import os
import subprocess
import sys
import sysconfig
import venv
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from hub_server import HubServer
from huggingface_hub import HfApi, constants
from PIL import Image
from processes import run_python
from safetensors.torch import load_file
from transformers import BertConfig

from crossvlt_hf import DEFAULT_CHECKPOINT, CrossVLTModel, CrossVLTProcessor, ReferringImageSegmentationPipeline
from crossvlt_hf.data.refshapes import make_example
from crossvlt_hf.publishing.facts import About, Evidence, public_name
from crossvlt_hf.publishing.repository import publish, write_repository
from crossvlt_hf.weights.checkpoint import load_checkpoint


ROOT = Path(__file__).parents[2]
NAME = "alice/crossvlt"
TOKEN = "hf_alice"
CODE = {f"{kind}_crossvlt.py" for kind in ("configuration", "layers", "modeling", "processing", "pipeline")}
WHOLE = {
    *CODE,
    "README.md",
    "config.json",
    "handler.py",
    "model.safetensors",
    "processor_config.json",
    "requirements.txt",
    "tokenizer.json",
    "tokenizer_config.json",
}
EXAMPLE = make_example("test", 3, seed=5)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps the address of the first Hub
    with HubServer(tmp_path / "hub", tokens={TOKEN: "alice", "hf_bob": "bob"}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


@pytest.fixture
def run(hub, tmp_path):
    """Run a command as a process that knows of no other Hub."""

    def run(*command, token=TOKEN, check=True, **variables):
        environment = {**hub.environment(tmp_path / "home", token), "OMP_NUM_THREADS": "1", **variables}
        if command[0] == sys.executable:
            done = run_python(*command[1:], environment=environment, folder=tmp_path)
        else:
            done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def crossvlt(run):
    return lambda *arguments, **options: run(sys.executable, "-m", "crossvlt_hf", *arguments, **options)


def names(hub, repository=NAME, revision="main"):
    return set(HfApi(endpoint=hub.endpoint, token=TOKEN).list_repo_files(repository, revision=revision))


@pytest.fixture(scope="session")
def without_package(tmp_path_factory):
    """Python of an environment with the libraries but not this package.

    An editable installation is a `.pth` file, which counts in an environment's own site-packages only.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "bin" / "python"
    # The editable installation also puts a folder crossvlt_hf/assets there, which has no code
    here = subprocess.run([python, "-c", "import crossvlt_hf.system"], capture_output=True, cwd=folder)
    if here.returncode == 0:
        pytest.skip("needs the package installed as `make` does, editable, and no PYTHONPATH that names it")
    return python


@pytest.fixture
def with_torchvision():
    """Python of an environment that somebody made, with torchvision and without this package."""
    python = os.environ.get("CROSSVLT_TORCHVISION_PYTHON")
    if not python:
        pytest.skip("needs a Python with torchvision and without this package, named by CROSSVLT_TORCHVISION_PYTHON")
    return python


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    Image.fromarray(EXAMPLE.scene.image).save(path)
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory, shared_model, scene):
    """A checkpoint of few weights, whose mask of the scene is half of it."""
    model, processor = copy.deepcopy(shared_model), CrossVLTProcessor.from_tokenizer(tiny_tokenizer(), image_size=64)
    inputs = processor(Image.open(scene), EXAMPLE.expression, return_tensors="pt")
    with torch.no_grad():
        background, found = model(**inputs).logits[0]
        model.decoder.classifier.bias[1] -= (found - background).median()
    folder = tmp_path_factory.mktemp("small")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def segment_locally(checkpoint, scene):
    model, processor = load_checkpoint(checkpoint)
    pipeline = ReferringImageSegmentationPipeline(model=model, processor=processor)
    (result,) = pipeline(str(scene), text=EXAMPLE.expression)
    mask = np.asarray(result["mask"]) > 0
    assert mask.any()
    assert not mask.all()
    return mask


@pytest.fixture(scope="session")
def local_mask(scene):
    return segment_locally(DEFAULT_CHECKPOINT, scene)


def round_trips(run, python, scene, trips):
    """The masks of every (model, folder that is made for them), and whether torchvision was there."""
    script = Path(__file__).with_name("remote_round_trip.py")
    run(python, script, scene, EXAMPLE.expression, *itertools.chain(*trips))
    for _, out in trips:
        with np.load(out / "masks.npz") as found:
            yield [found[f"arr_{index}"] for index in range(4)], bool(found["torchvision"])


@pytest.mark.slow
def test_a_published_checkpoint_works_without_the_package(
    hub, run, crossvlt, without_package, scene, local_mask, tmp_path
):
    """All five entry points by the Hub's id, then those of what was saved from there; the masks are the local ones."""
    done = crossvlt("publish", DEFAULT_CHECKPOINT, NAME)
    assert done.stdout.startswith(f"{hub.endpoint}/{NAME}/commit/")
    assert names(hub) >= WHOLE
    saved = tmp_path / "hub-out" / "saved"
    trips = ((NAME, tmp_path / "hub-out"), (saved, tmp_path / "saved-out"))
    for masks, torchvision in round_trips(run, without_package, scene, trips):
        assert not torchvision
        assert all((mask == local_mask).all() for mask in masks)
    assert {path.name for path in saved.iterdir()} >= CODE


def test_a_published_checkpoint_works_with_torchvision(
    hub, run, crossvlt, with_torchvision, scene, local_mask, tmp_path
):
    crossvlt("publish", DEFAULT_CHECKPOINT, NAME)
    ((masks, torchvision),) = round_trips(run, with_torchvision, scene, [(NAME, tmp_path / "out")])
    assert torchvision
    assert all((mask == local_mask).all() for mask in masks)


@pytest.mark.slow
def test_with_the_package_no_remote_code_is_needed(hub, run, small, scene, tmp_path):
    """Neither asked for nor run; a revision is that commit's."""
    publish(small, NAME, revision="first", commit_message="The first", token=TOKEN)
    script = """
import sys, crossvlt_hf, numpy as np
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, pipeline
name, image, expression, out = sys.argv[1:]
for auto_class in (AutoConfig, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor):
    assert type(auto_class.from_pretrained(name, revision="first")).__module__.startswith("crossvlt_hf.")
segmenter = pipeline("referring-image-segmentation", model=name, revision="first")
assert type(segmenter).__module__.startswith("crossvlt_hf.")
np.save(out, np.asarray(segmenter(image, text=expression)[0]["mask"]) > 0)
"""
    run(sys.executable, "-c", script, NAME, scene, EXAMPLE.expression, tmp_path / "mask.npy")
    assert (np.load(tmp_path / "mask.npy") == segment_locally(small, scene)).all()
    assert names(hub, revision="first") >= WHOLE
    assert not names(hub) & WHOLE
    commits = HfApi(endpoint=hub.endpoint, token=TOKEN).list_repo_commits(NAME, revision="first")
    assert commits[0].title == "The first"


@pytest.mark.slow
def test_what_was_downloaded_is_there_offline(hub, crossvlt, small, scene):
    publish(small, NAME, token=TOKEN)
    arguments = ("segment", scene, EXAMPLE.expression, "--model", NAME)
    online = crossvlt(*arguments)
    del hub.requests[:]
    offline = crossvlt(*arguments, HF_HUB_OFFLINE="1")
    assert json.loads(offline.stdout)["area"] == json.loads(online.stdout)["area"]
    assert not hub.requests
    refused = crossvlt("publish", small, NAME, HF_HUB_OFFLINE="1", check=False)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_private_repository_is_for_its_owner(hub, crossvlt, small, scene):
    publish(small, NAME, private=True, token=TOKEN)
    assert hub.repos["models", NAME].private
    refused = crossvlt("segment", scene, "the circle", "--model", NAME, token="hf_bob", check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
    for token in ("hf_bob", "hf_wrong"):
        with pytest.raises(OSError, match=r"401|403"):
            publish(small, NAME, token=token)
    refused = crossvlt("publish", small, NAME, token=None, check=False)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr


@pytest.mark.slow
def test_push_to_hub_of_model_and_processor_is_a_whole_repository(
    hub, run, model, processor, checkpoint, without_package, photo, tmp_path
):
    script = """
import sys
from crossvlt_hf import CrossVLTModel, CrossVLTProcessor
CrossVLTModel.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2])
CrossVLTProcessor.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2])
"""
    run(sys.executable, "-c", script, checkpoint, NAME)
    assert names(hub) >= WHOLE
    photo.save(tmp_path / "photo.png")
    script = """
import sys, numpy as np
from transformers import pipeline
segmenter = pipeline("referring-image-segmentation", model=sys.argv[1], trust_remote_code=True)
np.save("mask.npy", np.asarray(segmenter("photo.png", text="the red bus")[0]["mask"]) > 0)
"""
    run(without_package, "-c", script, NAME)
    (result,) = ReferringImageSegmentationPipeline(model=model, processor=processor)(photo, text="the red bus")
    assert (np.load(tmp_path / "mask.npy") == (np.asarray(result["mask"]) > 0)).all()


@pytest.mark.slow
def test_trainer_pushes_a_whole_repository(hub, run):
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import conftest, huggingface_hub
huggingface_hub.constants.HF_HUB_OFFLINE = False  # conftest sets it
from crossvlt_hf import CrossVLTModel, CrossVLTProcessor
from transformers import Trainer, TrainingArguments
config = conftest.tiny_config()
row = {{name: value[0] for name, value in conftest.fake_batch(config).items()}}
arguments = TrainingArguments("run", max_steps=1, push_to_hub=True, hub_model_id={NAME!r}, report_to=[], use_cpu=True)
processor = CrossVLTProcessor.from_tokenizer(conftest.tiny_tokenizer(), image_size=64)
trainer = Trainer(CrossVLTModel(config), arguments, train_dataset=[row] * 8, processing_class=processor)
trainer.train()
trainer.push_to_hub()
"""
    run(sys.executable, "-c", script)
    assert names(hub) >= WHOLE


@pytest.mark.slow
def test_the_training_script_pushes_a_whole_repository_with_its_card(hub, run, tmp_path):
    settings = [
        f"output.push_to_hub={NAME}",
        "output.folder=run",
        "output.pictures=0",
        "output.evaluation_batch_size=2",
        "optimization.max_steps=1",
        "optimization.batch_size=2",
        "data.workers=0",
        "data.train=[{name: refshapes, split: train, scenes: 4, side: 64}]",
        "data.validation=[{name: refshapes, split: validation, scenes: 2, side: 64}]",
    ]
    run(sys.executable, "-m", "crossvlt_hf", "train", "refshapes-64", *settings)
    assert names(hub) >= {*WHOLE, "training.json", "results.json", "about.yaml"}
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    card = Path(api.hf_hub_download(NAME, "README.md", cache_dir=tmp_path / "cache")).read_text()
    assert "2 pairs of an image and an expression of refshapes train, in 1 steps of 2, from random weights" in card
    assert str(tmp_path) not in card
    assert "not on photographs" in card
    assert "in which the run ended, below its peak" in card  # 1 step of 150
    metrics = json.loads((tmp_path / "run" / "best" / "results.json").read_text())["evaluations"][0]["metrics"]
    assert f"| {100 * metrics['mean_iou']:.1f} |" in card


@pytest.mark.slow
def test_the_handler_answers_a_request(run, model, processor, without_package, photo, tmp_path):
    """In an endpoint's way: from a folder, without the package, with an image in base64."""
    write_repository(model, processor, tmp_path / "repository")
    buffer = io.BytesIO()
    photo.save(buffer, format="PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, format="PNG")
    deep = io.BytesIO()
    Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16)).save(deep, format="PNG")
    half = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    text = {"text": "the red bus"}
    wrong = [
        {"inputs": {"image": "/etc/passwd", **text}},
        {"inputs": {"image": "http://127.0.0.1:9/x.png", **text}},  # no address that a request names
        {"inputs": {"image": "data:,", **text}},
        {"inputs": {"image": base64.b64encode(half).decode(), **text}},
        {"inputs": {"image": base64.b64encode(deep.getvalue()).decode(), **text}},
        {"inputs": {"image": base64.b64encode(bomb.getvalue()).decode(), **text}},
        {"inputs": {"image": image, "text": ["a"] * 65}},
        {"inputs": {"image": image, "text": " "}},
        {"inputs": {"image": image, **text}, "parameters": {"threshold": "0.5"}},
        {"inputs": {"image": image, **text}, "parameters": {"presence_threshold": "none"}},
        {"inputs": {"image": image, **text}, "parameters": {"timeout": None}},
        {"inputs": {"image": image, **text}, "parameters": [1]},
        {"inputs": "the red bus"},
        ["the red bus"],
    ]
    asked = {"image": f"data:image/png;base64,{image[:60]}\n{image[60:]}", "text": ["the red bus", "a cup"]}
    requests = [{"inputs": asked, "parameters": {"threshold": 0.4, "presence_threshold": None}}, *wrong]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    script = """
import json, sys
sys.path.insert(0, "repository")
from handler import EndpointHandler
answer = EndpointHandler("repository")
first, *wrong = json.load(open("requests.json"))
json.dump(answer(first), open("answer.json", "w"))
for request in wrong:
    try:
        answer(request)
        raise SystemExit(f"{request} was answered")
    except ValueError as error:
        print(error)
"""
    told = run(without_package, "-c", script).stdout.splitlines()
    assert len(told) == len(wrong)
    assert [line for line in told if "must be base64" in line] == told[:4]
    assert "looks like an image of 8 bits" in told[4]
    assert "the limit is 50,000,000" in told[5]
    assert told[-1].startswith('A request must be {"inputs"')
    answer = json.loads((tmp_path / "answer.json").read_text())
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor)
    expected = segmenter(photo, text=["the red bus", "a cup"], threshold=0.4)
    for found, result in zip(answer, expected, strict=True):
        assert (found["label"], found["box"]) == (result["label"], result["box"])
        mask = Image.open(io.BytesIO(base64.b64decode(found["mask"])))
        assert mask.tobytes() == result["mask"].tobytes()


@pytest.mark.slow
def test_an_exported_folder_is_complete_and_equal(model, processor, tmp_path):
    folder = write_repository(model.half(), processor, tmp_path / "new", model_id=NAME)
    assert {path.name for path in folder.iterdir()} == {*WHOLE, "about.yaml"}
    config = json.loads((folder / "config.json").read_text())
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation", "AutoProcessor"}
    assert list(config["custom_pipelines"]) == ["referring-image-segmentation"]
    loaded = CrossVLTModel.from_pretrained(folder)
    assert loaded.dtype == torch.float16
    assert all((loaded.state_dict()[name] == value).all() for name, value in model.state_dict().items())
    assert not hasattr(loaded.config, "custom_pipelines")  # with the package the pipeline is ours
    again = CrossVLTProcessor.from_pretrained(folder)
    assert again.to_json_string() == processor.to_json_string()
    write_repository(loaded, again, folder, model_id=NAME)  # over itself


def test_the_card_names_what_is_known(checkpoint, hub, tmp_path):
    report = {"data": "refcoco", "split": "testA", "metrics": {"overall_iou": 0.5, "mean_iou": 0.25}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "about.yaml").write_text("name: Mine\nlimits: Not for cats.\ndatasets: [alice/cats]\n")
    publish(checkpoint, NAME, about=tmp_path / "about.yaml", reports=(tmp_path / "report.json",), token=TOKEN)
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    card = Path(api.hf_hub_download(NAME, "README.md", cache_dir=tmp_path / "cache")).read_text()
    assert "# Mine\n" in card
    assert "Not for cats." in card
    assert "| refcoco testA | 50.0 | 25.0 |" in card
    assert f'model="{NAME}"' in card


@pytest.mark.parametrize(
    ("files", "arguments", "told"),
    [
        ({"report.json": "{"}, ["--results", "report.json"], "report.json cannot be read as JSON"),
        ({"report.json": '{"data": "x", "split": "y"}'}, ["--results", "report.json"], "`metrics` in report.json"),
        ({}, ["--results", "absent.json"], "absent.json"),
        ({"about.yaml": "nmae: x"}, ["--about", "about.yaml"], "'nmae'"),
        ({"about.yaml": "[1"}, ["--about", "about.yaml"], "cannot be read as YAML"),
        ({"out/notes.txt": "mine"}, ["--folder", "out"], "not empty"),
    ],
)
def test_publish_tells_what_is_wrong(checkpoint, tmp_path, monkeypatch, capsys, files, arguments, told):
    from crossvlt_hf.cli import main

    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert main(["publish", str(checkpoint), NAME, *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


def test_a_name_that_is_none_is_refused(checkpoint, hub, tmp_path):
    for name in ("a/b/c", 'a"b', "../x"):
        with pytest.raises(ValueError, match=r"(?i)repo"):
            publish(checkpoint, name, token=TOKEN)
        with pytest.raises(ValueError, match=r"(?i)repo"):
            write_repository(*load_checkpoint(checkpoint), tmp_path / "new", model_id=name)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_one_line(crossvlt, checkpoint):
    done = crossvlt("publish", checkpoint, NAME, HF_ENDPOINT="http://127.0.0.1:9", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "The Hub cannot be reached" in done.stderr


def test_what_is_public_is_not_taken_for_private(checkpoint, hub):
    HfApi(endpoint=hub.endpoint, token=TOKEN).create_repo(NAME)
    with pytest.raises(ValueError, match="public"):
        publish(checkpoint, NAME, private=True, token=TOKEN)
    assert not names(hub) & WHOLE


@pytest.mark.slow
def test_a_card_that_somebody_wrote_is_kept(checkpoint, hub, tmp_path):
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    api.create_repo(NAME)
    api.upload_file(path_or_fileobj=b"# My own words\n", path_in_repo="README.md", repo_id=NAME)
    with pytest.raises(ValueError, match="overwrite-card"):
        publish(checkpoint, NAME, token=TOKEN)
    assert names(hub) == {"README.md"} | (names(hub) & {".gitattributes"})
    publish(checkpoint, NAME, token=TOKEN, overwrite_card=True)
    publish(checkpoint, NAME, token=TOKEN)  # ours is no longer somebody's
    folder = tmp_path / "folder"
    write_repository(*load_checkpoint(checkpoint), folder, model_id=NAME)
    (folder / "README.md").write_text("# My own words\n")
    with pytest.raises(ValueError, match="was written by hand"):
        write_repository(*load_checkpoint(checkpoint), folder, model_id=NAME)


def test_folders_of_others_are_left_alone(checkpoint, tmp_path):
    other = tmp_path / "bert"
    BertConfig().save_pretrained(other)
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    with pytest.raises(ValueError, match="no folder of a CrossVLT"):
        write_repository(*load_checkpoint(checkpoint), other)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        write_repository(*load_checkpoint(checkpoint), tmp_path / "file")


def change(model):
    """The same network with other weights."""
    torch.nn.init.zeros_(model.decoder.classifier.weight)
    return model


def test_another_checkpoint_is_not_replaced(checkpoint, tmp_path):
    model, processor = load_checkpoint(checkpoint)
    folder = write_repository(model, processor, tmp_path / "mine", model_id=NAME)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = change(copy.deepcopy(model))
    for wrong in (other, copy.deepcopy(model).half()):
        with pytest.raises(ValueError, match=r"mine holds a checkpoint with other weights; .*--overwrite"):
            write_repository(wrong, processor, folder, model_id=NAME)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_repository(model, processor, folder, model_id=NAME)  # itself
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    with pytest.raises(ValueError, match="a checkpoint with other weights"):
        write_repository(other, processor, folder, model_id=NAME)
    write_repository(model, processor, folder, model_id=NAME)
    write_repository(other, processor, folder, model_id=NAME, overwrite=True)
    assert not load_checkpoint(folder)[0].decoder.classifier.weight.any()
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="a checkpoint with other weights"):
        write_repository(model, processor, folder, model_id=NAME)


def test_a_repository_does_not_go_beside_other_files(checkpoint, tmp_path):
    model, processor = load_checkpoint(checkpoint)
    folder = write_repository(model, processor, tmp_path / "mine")
    for own in (".gitattributes", "LICENSE", "evaluation.json", "vocab.txt"):
        (folder / own).touch()
    write_repository(model, processor, folder)
    (folder / "pictures").mkdir()
    for name in ("pictures", "notes.txt", "thesis.tex", "photo.png", "pytorch_model.bin"):
        other = (folder / name) if name == "pictures" else (folder / "pictures").replace(folder / name)
        with pytest.raises(ValueError, match=f"mine holds {name}, which does not belong to a checkpoint"):
            write_repository(model, processor, folder)
        other.replace(folder / "pictures")
    write_repository(model, processor, folder, overwrite=True)
    assert (folder / "pictures").is_dir()


def test_a_clone_of_an_empty_repository_has_room(checkpoint, tmp_path):
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / ".gitattributes").touch()
    assert (write_repository(*load_checkpoint(checkpoint), tmp_path / "clone") / "README.md").is_file()


def test_publish_to_a_folder_asks_before_it_replaces(checkpoint, tmp_path, monkeypatch, capsys):
    from crossvlt_hf.cli import main

    monkeypatch.chdir(tmp_path)
    command = ["publish", str(checkpoint), NAME, "--folder", "out"]
    assert main(command) == 0
    change(load_checkpoint(checkpoint)[0]).save_pretrained(checkpoint)
    capsys.readouterr()
    assert main(command) == 2
    assert "out holds a checkpoint with other weights" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    (tmp_path / "out" / "README.md").write_text("# Mine\n")
    assert main([*command, "--overwrite"]) == 2
    assert "--overwrite-card" in capsys.readouterr().err
    assert main([*command, "--overwrite-card"]) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--overwrite"], "`--overwrite` has no effect on the Hub"),
        (["--folder", "out", "--private"], "`--private` has no effect on a folder"),
        (["--folder", "out", "--create-pr"], "`--create-pr` has no effect on a folder"),
        (["--folder", "out", "--revision", "x"], "`--revision` has no effect on a folder"),
        (["--folder", "out", "--token", "x"], "`--token` has no effect on a folder"),
        (["--folder", "out", "--message", "x"], "`--message` has no effect on a folder"),
    ],
)
def test_publish_refuses_options_without_effect(checkpoint, capsys, options, told):
    from crossvlt_hf.cli import main

    assert main(["publish", str(checkpoint), NAME, *options]) == 2
    assert told in capsys.readouterr().err


REPORT = {"data": "refcoco", "split": "val", "metrics": {"mean_iou": 0.5}}


def test_evidence_is_what_was_saved(tmp_path):
    evidence = Evidence(About(name="x", limits="ä\nb"), [REPORT], [{"what": "w", "value": "1 s"}], {"summary": "s"})
    evidence.save(tmp_path)
    assert Evidence.read(tmp_path) == evidence
    Evidence().save(tmp_path)  # removes older evidence
    assert Evidence.read(tmp_path) == Evidence()


def test_figures_of_other_weights_are_refused(checkpoint):
    model, _ = load_checkpoint(checkpoint)
    Evidence(evaluations=[REPORT]).save(checkpoint)
    assert Evidence.read(checkpoint).evaluations == [REPORT]
    torch.nn.init.zeros_(model.decoder.classifier.weight)
    model.save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="other weights"):
        Evidence.read(checkpoint)


@pytest.mark.slow
def test_what_is_known_comes_along_from_the_hub(hub, crossvlt, checkpoint, tmp_path):
    about = About(name="Mine", license="cc-by-nc-4.0", datasets=["alice/cats"])
    Evidence(about, [REPORT], training={"summary": "Long."}).save(checkpoint)
    publish(checkpoint, NAME, token=TOKEN)
    crossvlt("publish", NAME, "alice/again")
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    cards = [
        Path(api.hf_hub_download(name, "README.md", cache_dir=tmp_path / "cache")).read_text()
        for name in (NAME, "alice/again")
    ]
    assert cards[1] == cards[0].replace(NAME, "alice/again").replace("name: crossvlt", "name: again")
    assert "license: cc-by-nc-4.0" in cards[1]
    assert "Long." in cards[1]


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": None},
        {"metrics": {}},
        {"data": 1},
        {"image_size": 3},
        {"families": [1]},
        {"families": {"a": 1}},
        {"source": "me"},
        {"option": ["a=1"]},
        {"split": ""},
    ],
    ids=str,
)
def test_an_invalid_report_is_refused(tmp_path, change):
    (tmp_path / "report.json").write_text(json.dumps(REPORT | change))
    with pytest.raises(ValueError, match=r"report\.json"):
        Evidence.read(tmp_path, reports=[tmp_path / "report.json"])


@pytest.mark.parametrize("results", [{"evaluations": 3}, {"evaluations": [1]}, {"timing": 3}], ids=str)
def test_invalid_results_are_refused(tmp_path, results):
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"results\.json"):
        Evidence.read(tmp_path)


@pytest.mark.parametrize(
    "words", [{"summary": None}, {"name": ["a"]}, {"datasets": 3}, {"name": "a\nb"}, {"expression": "a\nb"}], ids=str
)
def test_fields_of_another_type_are_refused(words):
    with pytest.raises(ValueError, match=next(iter(words))):
        About(**words)


def test_no_path_of_this_machine_is_published(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    report = REPORT | {"data": str(tmp_path / "my data"), "model": str(checkpoint)}
    report |= {"option": {"images": str(tmp_path), "seed": 3}, "metrics": {"mean_iou": 0.5, "overall_iou": math.nan}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    evidence = Evidence.read(tmp_path, reports=[tmp_path / "report.json"])
    assert evidence.evaluations == [REPORT | {"data": "my data", "option": {"seed": 3}}]
    folder = write_repository(*load_checkpoint(checkpoint), tmp_path / "out", evidence=evidence)
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert 'model="out"' in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["refcoco+", "jxu124/refcoco", "refshapes"])
def test_names_of_data_sets_are_kept(name):
    assert public_name(name) == name


NAMED = {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}


@pytest.mark.parametrize("by", ["save_pretrained", "push_to_hub", "save_pretrained of a folder that is there"])
@pytest.mark.parametrize("what", ["config", "processor", "pipeline", "model"])
def test_every_way_to_push_ends_in_a_whole_repository(hub, monkeypatch, model, processor, tmp_path, what, by):
    """With the code that `auto_map` names, whatever the folder held before."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    things = {"config": model.config, "processor": processor, "model": model}
    things["pipeline"] = ReferringImageSegmentationPipeline(model=model, processor=processor)
    own = {"config": {"config.json"}, "model": {"config.json", "model.safetensors"}, "pipeline": NAMED}
    folder = tmp_path / "crossvlt"
    if by == "push_to_hub":
        things[what].push_to_hub(NAME, private=True)
    else:
        if by != "save_pretrained":
            things["pipeline"].save_pretrained(folder)
        things[what].save_pretrained(folder, push_to_hub=True, repo_id=NAME)
        assert {path.name for path in folder.iterdir()} >= CODE
    wanted = own.get(what, NAMED - {"config.json", "model.safetensors"}) | CODE | {"handler.py", "requirements.txt"}
    assert names(hub) >= wanted
    assert hub.repos["models", NAME].private == (by == "push_to_hub")


def contents(hub, repository=NAME, revision="main"):
    """The files of a repository, except that of the Hub, with their contents."""
    api, options = HfApi(endpoint=hub.endpoint, token=TOKEN), {"revision": revision}
    found = names(hub, repository, revision) - {".gitattributes"}
    with TemporaryDirectory() as cache:
        return {
            name: Path(api.hf_hub_download(repository, name, cache_dir=cache, **options)).read_bytes()
            for name in found
        }


@pytest.mark.parametrize("what", ["config", "processor", "pipeline", "model"])
def test_what_is_pushed_is_what_is_in_the_folder(hub, monkeypatch, model, processor, tmp_path, what):
    """Other weights than those of the model, under another name, and a card; but no other files."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    things = {"config": model.config, "processor": processor, "model": model}
    things["pipeline"] = ReferringImageSegmentationPipeline(model=model, processor=processor)
    folder = tmp_path / "crossvlt"
    (folder / "figures").mkdir(parents=True)
    others = ("figures/curves.txt", ".env", "notes.txt", "train.py", "photo.png")
    for name in ("README.md", *others):
        (folder / name).write_text("---\nlicense: mit\n---\n\n# Mine\n")
    average = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    own = {"variant": "fp16", "state_dict": average} if what in ("model", "pipeline") else {}
    things[what].save_pretrained(folder, push_to_hub=True, repo_id=NAME, **own)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert contents(hub) == {name: path.read_bytes() for name, path in files.items() if name not in others}
    assert (folder / "README.md").read_text() == "---\nlicense: mit\n---\n\n# Mine\n"
    if own:
        assert not any(value.any() for value in load_file(files["model.fp16.safetensors"]).values())
        assert "model.safetensors" not in files


@pytest.mark.filterwarnings("ignore:Warnings while validating metadata")  # the card "# Mine" has none
@pytest.mark.parametrize("what", ["config", "processor", "pipeline", "model"])
def test_the_card_of_a_repository_stays_if_the_folder_has_none(hub, monkeypatch, model, processor, tmp_path, what):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    things = {"config": model.config, "processor": processor, "model": model}
    things["pipeline"] = ReferringImageSegmentationPipeline(model=model, processor=processor)
    push = partial(things[what].save_pretrained, tmp_path / "crossvlt", push_to_hub=True, repo_id=NAME)
    push(tags=["reference"], private=True, revision="draft", commit_description="With a card of its own")
    assert hub.repos["models", NAME].private
    assert "README.md" not in names(hub)
    assert "- reference\n" in contents(hub, revision="draft")["README.md"].decode()
    push()
    assert b"automatically generated" in contents(hub)["README.md"]
    HfApi(endpoint=hub.endpoint, token=TOKEN).upload_file(
        path_or_fileobj=b"# Mine", path_in_repo="README.md", repo_id=NAME
    )
    push()
    assert contents(hub)["README.md"] == b"# Mine"
    push(tags="reference")
    assert contents(hub)["README.md"].decode() == "---\ntags:\n- reference\n---\n# Mine"
    assert not (tmp_path / "crossvlt" / "README.md").exists()


def test_a_process_that_does_not_save_does_not_push(hub, monkeypatch, model, processor, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for thing in (model, ReferringImageSegmentationPipeline(model=model, processor=processor)):
        thing.save_pretrained(tmp_path / "crossvlt", push_to_hub=True, repo_id=NAME, is_main_process=False)
    assert not list((tmp_path / "crossvlt").iterdir())
    assert not hub.repos


def test_a_file_is_not_pushed_as_a_folder(hub, monkeypatch, model, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "crossvlt").write_text("mine")
    with pytest.raises(FileExistsError, match="crossvlt is a file; give a folder"):
        model.save_pretrained(tmp_path / "crossvlt", push_to_hub=True)


def test_the_name_of_a_pushed_folder_is_that_of_the_repository(hub, monkeypatch, model, processor, tmp_path):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor)
    segmenter.save_pretrained(f"{tmp_path}/mine/", push_to_hub=True, commit_message="My first", token=TOKEN)
    assert names(hub, "alice/mine") >= NAMED | CODE
    commits = HfApi(endpoint=hub.endpoint, token=TOKEN).list_repo_commits("alice/mine")
    assert commits[0].title == "My first"


@pytest.mark.slow
def test_a_pushed_pipeline_works_without_the_package(hub, run, model, processor, without_package, photo, tmp_path):
    segmenter = ReferringImageSegmentationPipeline(model=model, processor=processor)
    segmenter.save_pretrained(tmp_path / "folder", push_to_hub=True, repo_id=NAME, token=TOKEN)
    photo.save(tmp_path / "photo.png")
    script = """
import sys, numpy as np
from transformers import pipeline
segmenter = pipeline("referring-image-segmentation", model=sys.argv[1], trust_remote_code=True)
(result,) = segmenter("photo.png", text="the red bus zebra")
assert result["unknown_words"] == ["zebra"], result
np.save("mask.npy", np.asarray(result["mask"]) > 0)
"""
    run(without_package, "-c", script, NAME)
    (result,) = segmenter(photo, text="the red bus zebra")
    assert (np.load(tmp_path / "mask.npy") == (np.asarray(result["mask"]) > 0)).all()
