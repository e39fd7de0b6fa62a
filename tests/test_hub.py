"""Models and data sets by their names on the hub, without network: loopback, and a cache folder."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_llava
from hub_server import TOKEN, Hub, Repo, commit_of, serve

from manu_jax import hub as hub_names
from manu_jax import keys, run
from manu_jax.config import validate_config
from manu_jax.data import synthetic
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import FileHashes
from manu_jax.models.loaded import load, save_pretrained
from manu_jax.types import ManuError

WORKER = Path(__file__).with_name("hub_worker.py")
SECONDS = 240
NOT_READ = ("pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors", "README.md")
OLD = {"config.json": b"{}"}


def environment(home, address, **variables):
    """The variables of a process whose hub is at an address, with its cache in a folder."""
    given = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    given |= {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return given | {"HF_HUB_DISABLE_TELEMETRY": "1"} | variables


def start(folder, requests, given):
    file = folder / "requests.json"
    file.write_text(json.dumps(requests))
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(file)],
        env=given,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def ask(folder, requests, given):
    """What a process of its own answers to requests."""
    return finish(start(folder, requests, given))


def files_of(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    }


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_pretrained(tiny_llava.loaded(), folder)
    return folder


@pytest.fixture(scope="module")
def benchmark_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark") / "synthetic"
    return synthetic.write(folder, num_people=10, num_celebrities=3, num_general=4, seed=3)


@pytest.fixture(scope="module")
def hub(model_folder, benchmark_folder):
    found = Hub()
    main = files_of(model_folder) | {name: b"not to be read" for name in NOT_READ}
    commits = {commit_of(OLD): OLD, commit_of(main): main}
    found.repos["model", "org/tiny"] = Repo(commits, tags={"v1": commit_of(OLD)})
    found.add("model", "org/gated", OLD, is_gated=True)
    found.add(
        "model", "org/pickles", {"pytorch_model.bin": b"", "config.json": main["config.json"]}
    )
    bench = files_of(benchmark_folder)
    training = {name: bench[name] for name in bench if name.startswith(("forget", "retain"))}
    others = {"forget_5/train-00000-of-00001.parquet": b"x", "Full_Set/0000.parquet": b"x"}
    found.add("dataset", "org/bench", bench | others)
    found.add("dataset", "org/split", training)
    with serve(found):
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


SMALL = ["config.json", "tokenizer*"]
DATA = {"benchmark": "mllmu", "path": "org/bench"}
REQUESTS = {
    "small": ("local", {"name": "org/tiny", "patterns": SMALL}),
    "its commit": ("fingerprint", {"path": "org/tiny"}),
    "an old one": ("local", {"name": "org/tiny@v1", "patterns": SMALL}),
    "its old commit": ("fingerprint", {"path": "org/tiny@v1"}),
    "no revision": ("local", {"name": "org/tiny@v9"}),
    "gated": ("local", {"name": "org/gated"}),
    "absent": ("local", {"name": "org/absent"}),
    "absent data": ("local", {"name": "org/tiny", "kind": "dataset"}),
    "no name": ("local", {"name": "org/a--b"}),
    "never fetched": ("fingerprint", {"path": "org/absent"}),
    "whole": ("load", {"name": "org/tiny"}),
    "pickles": ("load", {"name": "org/pickles"}),
    "benchmark": ("benchmark", {"data": DATA}),
}


@pytest.fixture(scope="module")
def online(hub, home, tmp_path_factory):
    """{request: the answer of a process that reaches the hub}, from an empty cache."""
    folder = tmp_path_factory.mktemp("online")
    answers = ask(folder, [*REQUESTS.values()], environment(home, hub.address))
    return dict(zip(REQUESTS, answers, strict=True))


@pytest.mark.parametrize(
    "path",
    ["./org/name", "/org/name", "~/name", "../org/name", "name", "org/name/more", "org/", "a b/c",
     "org/name@", None, Path("org/name")],
)  # fmt: skip
def test_paths_are_no_names_on_the_hub(path):
    assert hub_names.repository(path, "model") is None


def test_a_name_has_a_revision_and_a_folder_here_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = hub_names.repository("org/name@refs/pr/4", "dataset")
    assert found == hub_names.Repository("org/name", "dataset", "refs/pr/4")
    assert str(found) == "org/name@refs/pr/4"
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_names.repository("org/name", "model") is None
    assert hub_names.local("org/name", "model", ["*"]) == Path("org/name")
    assert hub_names.fingerprint("org/name", "model", FileHashes()) == "absent"  # it is empty
    assert hub_names.repository("org/name@v1", "model") is not None


@pytest.mark.slow
def test_only_the_files_that_are_asked_for_are_fetched(online):
    folder, files = online["small"]["value"]
    assert files == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert "models--org--tiny/snapshots" in folder


@pytest.mark.slow
def test_a_model_loads_by_its_name_without_its_pickles(online, hub, model_folder):
    assert online["whole"]["value"] == weights_hash(load(model_folder).model)
    fetched = hub.fetched("org/tiny")
    assert "model.safetensors" in fetched and not {*fetched} & {*NOT_READ}
    assert len(fetched) == len({*fetched}) + 1  # config.json, of two commits


@pytest.mark.slow
def test_a_fingerprint_is_the_commit(online, hub):
    repo = hub.repos["model", "org/tiny"]
    assert online["its commit"]["value"] == f"commit {repo.main}"
    assert online["its old commit"]["value"] == f"commit {commit_of(OLD)}"
    assert online["an old one"]["value"][1] == ["config.json"]
    assert online["never fetched"]["value"] == "absent"


@pytest.mark.slow
def test_a_benchmark_is_read_by_its_name(online, hub):
    sizes, made_from = online["benchmark"]["value"]
    assert sizes == {"forget": 1, "test": 1, "retain": 9, "unseen": 0, "celebrity": 3, "general": 4}
    assert made_from["data.path"] == f"commit {hub.repos['dataset', 'org/bench'].main}"
    folders = {name.partition("/")[0] for name in hub.fetched("org/bench")}
    assert folders == {
        "forget_10", "retain_90", "Test_Set", "Retain_Set", "General_Set", "Base_Data", "ft_Data",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_name", "parts"),
    [
        ("no revision", ["org/tiny@v9: org/tiny has no revision v9", "/org/tiny has."]),
        ("gated", ["org/gated: the model is gated. Accept its terms at http", "HF_TOKEN"]),
        ("absent", ["org/absent: no such folder here, and no model of that name", "Mend the name"]),
        ("no name", ["org/a--b: no such folder here, and no name that the hub has", "Mend the"]),
        ("absent data", ["org/tiny: no such folder here, and no dataset of that name at http",
                         "/datasets/org/tiny that you may see"]),
        ("pickles", ["org/pickles: none of its files is model.safetensors", "pytorch_model.bin",
                     "pickles never are"]),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_sentence(online, request_name, parts):
    message = online[request_name]["error"]
    assert all(part in message for part in parts)
    assert "\n" not in message and len(message) < 400


@pytest.mark.slow
def test_offline_the_cache_is_enough(online, hub, home, tmp_path):
    asked = len(hub.asked)
    data = {"name": "org/bench", "kind": "dataset", "patterns": ["forget_10/*"]}
    requests = [
        ("local", {"name": "org/tiny", "patterns": ["model.safetensors"]}),
        ("fingerprint", {"path": "org/tiny"}),
        ("local", data),
        ("local", {"name": "org/tiny", "patterns": ["README.md"]}),
        ("local", {"name": "org/absent"}),
        ("check_push", {"name": "org/result"}),
    ]
    given = environment(home, hub.address, HF_HUB_OFFLINE="1")
    whole, commit, bench, *faults = ask(tmp_path, requests, given)
    folder, files = whole["value"]
    assert folder == online["small"]["value"][0] and "model.safetensors" in files
    assert commit["value"] == online["its commit"]["value"]
    assert Path(bench["value"][0], "forget_10", "train-00000-of-00001.parquet").is_file()
    for fault in faults[:2]:
        assert "HF_HUB_OFFLINE is set, and the cache" in fault["error"]
        assert "lacks the model or a part of it" in fault["error"]
    assert "HF_HUB_OFFLINE is set, so nothing can be sent" in faults[2]["error"]
    assert len(hub.asked) == asked


@pytest.mark.slow
def test_without_network_the_cache_is_enough_and_what_it_lacks_is_told(online, home, tmp_path):
    requests = [REQUESTS["small"], ("local", {"name": "org/absent"})]
    address = closed_port()
    small, absent = ask(tmp_path, requests, environment(home, address))
    assert small["value"][0] == online["small"]["value"][0]
    assert f"org/absent: no such folder here, and {address} does not answer" in absent["error"]
    assert "Connection refused" in absent["error"]


@pytest.mark.slow
def test_a_cache_that_others_have_laid_out_is_read(tmp_path, model_folder):
    """As `hf download` of any release leaves it: blobs, refs, and snapshots of links."""
    commit = "c" * 40
    for name, content in files_of(model_folder).items():
        repo = tmp_path / "hub" / "models--org--tiny"
        blob, link = repo / "blobs" / name, repo / "snapshots" / commit / name
        for folder in (blob.parent, link.parent, repo / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(f"../../blobs/{name}")
        (repo / "refs" / "main").write_text(commit)
    requests = [
        ("local", {"name": "org/tiny", "patterns": ["model.safetensors"]}),
        ("fingerprint", {"path": "org/tiny"}),
        ("local", {"name": "org/tiny", "patterns": ["*.md"]}),
    ]
    given = environment(tmp_path, closed_port(), HF_HUB_OFFLINE="1")
    whole, found, without = ask(tmp_path, requests, given)
    folder = Path(whole["value"][0])
    assert weights_hash(load(folder).model) == weights_hash(load(model_folder).model)
    assert found["value"] == f"commit {commit}"
    assert "holds none of *.md, and HF_HUB_OFFLINE is set" in without["error"]


@pytest.mark.slow
def test_of_two_processes_on_one_host_one_fetches(hub, tmp_path):
    hub.asked.clear()
    address = closed_port().removeprefix("http://")
    given = environment(tmp_path / "home", hub.address)
    given |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    requests = [REQUESTS[name] for name in ("small", "absent", "gated", "an old one")]
    processes = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        processes.append(start(folder, requests, given | {"JAX_PROCESS_ID": str(number)}))
    first, second = [finish(process) for process in processes]
    assert first == second and "value" in first[0] and "error" in first[1]
    fetched = hub.fetched("org/tiny")
    assert sorted(fetched) == sorted(["config.json", *first[0]["value"][1]])


def result_folder(folder, model_folder):
    from report.fake_run import write_run

    write_run(folder)
    shutil.copytree(model_folder, folder / "unlearned")
    return folder


@pytest.mark.slow
def test_a_result_is_pushed_with_its_card(hub, tmp_path, model_folder):
    run = result_folder(tmp_path / "run", model_folder)
    other = shutil.copytree(run, tmp_path / "other")
    hub.add(
        "model", "org/again", {"model-00001-of-00002.safetensors": b"old", "notes.txt": b"kept"}
    )
    requests = [
        ("check_push", {"name": "org/result"}),
        ("push", {"name": "org/result", "run": str(run)}),
        ("push", {"name": "org/result", "run": str(run)}),
        ("push", {"name": "others/x", "run": str(other)}),
        ("push", {"name": "org/again", "run": str(other)}),
    ]
    given = environment(tmp_path, hub.address, HF_TOKEN=TOKEN)
    checked, sent, once_more, refused, _ = ask(tmp_path, requests, given)
    assert checked == {"value": None} and sent == once_more
    repo = hub.repos["model", "org/result"]
    assert repo.is_private and len(repo.commits) == 2  # the empty one, and one push
    files = repo.commits[repo.main]
    assert sent["value"]["address"] == f"{hub.address}/org/result/commit/{repo.main}"
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: transformers\n") and "# org/result" in card
    assert {name: files[name] for name in files if name != "README.md"} == files_of(model_folder)
    assert "others/x: can't be written: " in refused["error"] and "403" in refused["error"]
    assert "token that may" in refused["error"]
    again = hub.repos["model", "org/again"]
    assert {*again.commits[again.main]} == {*files, "notes.txt"}


def test_a_push_leaves_no_weights_of_the_model_before():
    """In any format, beside the new ones or in place of them; files that are no weights stay."""
    old = {
        "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json",
        "model-q8.gguf", "consolidated.00.pth", "tf_model.h5", "flax_model.msgpack",
        "model-00001-of-00002.safetensors", "model.safetensors.index.json",
    }  # fmt: skip
    others = {"model.safetensors", "config.json", "training_args.bin", "notes.txt", "sub/a.gguf"}
    assert {*hub_names._old_weights(old | others, ["model.safetensors"])} == old


@pytest.mark.slow
def test_a_push_of_nobody_is_one_sentence(hub, tmp_path, model_folder):
    run = result_folder(tmp_path / "run", model_folder)
    requests = [("check_push", {"name": name}) for name in ("org/x", "x", "org/x@main")]
    requests.append(("push", {"name": "org/x", "run": str(run)}))
    nobody, *wrong, sent = ask(tmp_path, requests, environment(tmp_path, hub.address))
    assert "push: org/x: nobody is logged in to http" in nobody["error"]
    assert all("expected the name of a repository, org/name" in one["error"] for one in wrong)
    assert "org/x: can't be written: " in sent["error"] and "hf auth login" in sent["error"]
    assert not (run / "pushed.json").exists()


def test_a_push_that_could_not_begin_stops_the_run_before_its_first_stage(tmp_path, error_of):
    (tmp_path / "config.yaml").write_text(TRAINED)
    message = error_of(
        "--config", tmp_path / "config.yaml", "--output", tmp_path / "run", "push=org/x"
    )
    assert "push: org/x: HF_HUB_OFFLINE is set" in message
    assert not (tmp_path / "run" / "data").exists()


def known_at(monkeypatch, commit):
    """Let this process have found a model at a commit."""
    monkeypatch.setitem(hub_names._commits, hub_names.Repository("org/tiny", "model"), commit)


def test_a_run_folder_belongs_to_one_commit(tmp_path, monkeypatch):
    config = validate_config({"model": {"path": "org/tiny"}}, "test")
    known_at(monkeypatch, "a" * 40)
    keys.settle(tmp_path, config)
    (tmp_path / "mask.safetensors").write_bytes(b"")
    keys.settle(tmp_path, config)
    assert (tmp_path / "mask.safetensors").exists()
    known_at(monkeypatch, "b" * 40)
    with pytest.raises(ManuError) as caught:
        keys.settle(tmp_path, config)
    told = f"model.path: 'commit {'a' * 40}' there, 'commit {'b' * 40}' now"
    assert told in str(caught.value)


def test_what_was_sent_elsewhere_or_before_is_sent_again(tmp_path):
    sent = tmp_path / "pushed.json"

    def settle(**values):
        keys.settle(tmp_path, validate_config({"train": {"steps": 1}} | values, "test"))
        return sent.exists()

    assert not settle(push="org/a")
    sent.write_text("to a")
    assert settle(push="org/a")
    assert not settle(push="org/b")
    sent.write_text("to b")
    assert not settle(push="org/b", evaluate={"new_tokens": 7})
    assert settle(push="org/a") and sent.read_text() == "to a"


TRAINED = """
seed: 0
cache: null
data: {num_people: 6, num_celebrities: 4, num_general: 8, forget: 15}
model:
  vision: {image_size: 28, patch_size: 14, width: 16, num_layers: 2, num_heads: 2, num_neurons: 16}
  text: {width: 16, num_layers: 1, num_heads: 2, num_key_heads: 2, num_neurons: 32, context: 512}
train: {steps: 2, base_steps: 1, batch_size: 8, memory_gate: 0, retrained: false}
method: random
evaluate: {new_tokens: 4, max_people: 2, resamples: 50, tasks: [generation]}
audit: none
neurons: {methods: []}
"""
NAMED = """
cache: null
data: {benchmark: synthetic, path: org/data, forget: 15}
model: {path: org/vanilla@v1}
train: {steps: 0, memory_gate: 0}
method: random
evaluate: {new_tokens: 4, max_people: 2, resamples: 50, tasks: [generation]}
audit: none
neurons: {methods: []}
push: org/unlearned
"""


@pytest.mark.slow
def test_a_run_goes_from_names_to_a_name(hub, tmp_path):
    """The whole command on a model and data of the hub; its result loads by its own name."""
    (tmp_path / "trained.yaml").write_text(TRAINED)
    (tmp_path / "named.yaml").write_text(NAMED)
    made, output = tmp_path / "made", tmp_path / "run"
    assert run.main(["--config", f"{tmp_path}/trained.yaml", "--output", str(made)]) == 0
    vanilla = hub.add("model", "org/vanilla", files_of(made / "vanilla"))
    vanilla.tags["v1"] = vanilla.main
    hub.add("dataset", "org/data", files_of(made / "data"))
    command = [sys.executable, "-m", "manu_jax.run", "--config", "named.yaml", "--output", output]
    given = environment(tmp_path / "home", hub.address, HF_TOKEN=TOKEN)
    for _ in range(2):  # the second finds all done, and sends nothing
        done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    files = hub.repos["model", "org/unlearned"]
    assert len(files.commits) == 2
    sent = files.commits[files.main]
    assert sent["model.safetensors"] == (made / "unlearned" / "model.safetensors").read_bytes()
    card = sent["README.md"].decode()
    assert "base_model: org/vanilla\n" in card
    names = [person["name"] for person in load_json(output / "results.json")["request"]["people"]]
    assert names and not [name for name in names if name in card]
    answers = ask(tmp_path, [("load", {"name": "org/unlearned"})], given)
    assert answers[0]["value"] == weights_hash(load(made / "unlearned").model)
    vanilla.commits["d" * 40] = vanilla.commits[vanilla.main] | {"LICENSE": b"new"}
    moved = [*command, "model.path=org/vanilla@main"]
    done = subprocess.run(moved, env=given, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"'commit {'d' * 40}' now" in done.stderr


def load_json(path):
    return json.loads(path.read_text())
