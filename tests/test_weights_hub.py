"""resolve() against a stand-in of the hub on this machine: no test reaches the network."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import save

from nanollm_jax.errors import CheckpointError, ConfigError
from nanollm_jax.weights import resolve
from nanollm_jax.weights.source import read_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"x": np.arange(6, dtype=np.float32)})
WANTED = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {"x": "model-00001-of-00001.safetensors"}}',
    "model-00001-of-00001.safetensors": WEIGHTS,
    "tokenizer.model": b"\x0a",
    "merges.txt": b"a b\n",
    "qwen.tiktoken": b"IQ== 0\n",
    "tekken.json": b'{"config": {}}',
    "chat_template.jinja": b"{{ messages }}",
}
UNWANTED = {
    "README.md": b"not to be fetched",
    "pytorch_model.bin": b"nor this",
    "consolidated.00.pth": b"nor this",
    "consolidated.safetensors": b"nor this",
    "consolidated-00001-of-00001.safetensors": b"nor this",
    "model.gguf": b"nor this",
    "original/params.json": b"nor this",
    "onnx/model.safetensors": b"nor this",
}
HAS_GGUF = {f"model-{kind}.gguf": kind.encode() for kind in ("Q4_K_M", "Q4_K", "IQ4_K_M", "Q8_0")}
HAS_GGUF |= {f"f16/model-f16-0000{n}-of-00002.gguf": b"part %d" % n for n in (1, 2)} | {"mmproj-F16.gguf": b"sees"}
REFUSALS = {"no/such": (404, "RepoNotFound"), "gated/model": (403, "GatedRepo"), "broken/model": (500, "")}

# Runs in a process of its own, because huggingface_hub reads its environment once, at import. It waits longer behind each
# answer that fails, which no test looks at.
PROGRAM = """
import json, sys, time
time.sleep = lambda seconds: None
from nanollm_jax.errors import CheckpointError, ConfigError
from nanollm_jax.weights.source import read_json
from nanollm_jax.weights import open_checkpoint, resolve
for source, revision in json.loads(sys.argv[1]):
    try:
        folder = resolve(source, revision, weights=source != "without/weights")
        if ":" in source:
            print(json.dumps({"file": str(folder), "size": folder.stat().st_size}))
            continue
        tensors = {name: open_checkpoint(folder).read(name).tolist() for name in open_checkpoint(folder).names()}
        print(json.dumps({"folder": str(folder), "tensors": tensors}))
    except CheckpointError as error:
        print(json.dumps({"error": str(error)}))
"""


class StandIn(http.server.BaseHTTPRequestHandler):
    """The four requests that a snapshot takes: the revision's commit, its tree, and HEAD and GET of each file."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).removeprefix("/api/models").lstrip("/")
        owner, name, *rest = path.split("/")
        files, kind = HAS_GGUF if name == "gguf" else WANTED | UNWANTED, rest[0] if rest else "revision"
        if f"{owner}/{name}" in REFUSALS:
            status, code = REFUSALS[f"{owner}/{name}"]
            self.reply(status, b"{}", {"X-Error-Code": code})
        elif kind == "revision" and rest[1:] not in ([], ["main"], ["v1"], [COMMIT]):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            self.reply(200, json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}).encode())
        elif kind == "tree":
            tree = [{"type": "file", "path": f, "size": len(data), "oid": tag(data)} for f, data in files.items()]
            self.reply(200, json.dumps(tree).encode())
        else:
            file = "/".join(rest[2:])
            if self.command == "GET":
                self.server.fetched.append((f"{owner}/{name}", file))
            self.reply(200, files[file], {"X-Repo-Commit": COMMIT, "ETag": f'"{tag(files[file])}"'})

    def reply(self, status, body, headers=()):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def tag(data):
    return hashlib.sha1(data).hexdigest()


def run(sources, home, **environment):
    """resolve() each of [(source, revision)] in a fresh process; a list of {"folder", "tensors"} or {"error"}."""
    clean = {key: os.environ[key] for key in os.environ if not key.startswith("HF_") and "proxy" not in key.lower()}
    clean |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"} | environment
    command = [sys.executable, "-c", PROGRAM, json.dumps(sources)]
    process = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """One process with the stand-in up, one with HF_HUB_OFFLINE, one with nobody listening, on the same cache."""
    home = tmp_path_factory.mktemp("home")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.fetched = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    revisions = [("owner/model", revision) for revision in (None, "v1", "v9")]
    refused = [(name, None) for name in (*REFUSALS, "not an id")]
    wanted = [(f"owner/gguf:{kind}", None) for kind in ("q4_k_m", "f16", "Q3_K_S", "model")] + [
        ("no/such:Q8_0", None),
        ("owner/gguf", None),
    ]
    online = run(revisions + refused + wanted + [("without/weights", None)], home, HF_ENDPOINT=endpoint)
    files = {of: sorted(file for name, file in server.fetched if name == of) for of, _ in server.fetched}
    server.shutdown()
    thread.join()
    server.server_close()
    again = [("owner/model", None), ("owner/other", None), ("owner/gguf:Q4_K_M", None)]
    offline = run(again, home, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1")
    unreachable = run(again, home, HF_ENDPOINT=endpoint)
    return {
        "home": home,
        "fetched": files,
        "online": online[: -len(wanted) - 1],
        "ggufs": online[-len(wanted) - 1 : -1],
        "offline": offline,
        "unreachable": unreachable,
    }


def test_a_hub_model_is_downloaded_to_the_hubs_cache_and_opens(hub):
    first = hub["online"][0]
    assert first["tensors"] == {"x": [0, 1, 2, 3, 4, 5]}
    assert Path(first["folder"]).is_relative_to(hub["home"])
    assert {str(p.relative_to(first["folder"])) for p in Path(first["folder"]).rglob("*")} == set(WANTED)


def test_only_what_we_read_is_fetched_and_only_once(hub):
    """Two revisions of one commit were asked for. No pickle, no other runtime's copy, no subfolder is among them."""
    assert hub["fetched"]["owner/model"] == sorted(WANTED)


def test_the_weights_can_be_left_out(hub):
    """What `nanollm info` and `nanollm tokenize` need of a hub model."""
    assert hub["fetched"]["without/weights"] == sorted(name for name in WANTED if not name.endswith(".safetensors"))


def test_a_revision_is_honoured(hub):
    assert hub["online"][1] == hub["online"][0]
    assert "'owner/model' at revision 'v9' has no such revision" in hub["online"][2]["error"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (3, "'no/such' is neither a folder nor a hub model"),
        (4, "'gated/model' is gated; accept its terms"),
        (5, "'broken/model' is no folder here, not complete in the cache of the hub, and the hub cannot be reached"),
        (6, "not an id: folder not found; expected an existing one, or a hub id 'owner/name'"),
    ],
)
def test_the_hubs_refusals_become_one_line_with_a_remedy(hub, number, said):
    assert said in hub["online"][number]["error"]
    assert "\n" not in hub["online"][number]["error"]


@pytest.mark.parametrize("network", ["offline", "unreachable"])
def test_without_a_network_the_cache_serves_and_the_rest_is_refused(hub, network):
    assert hub[network][0] == hub["online"][0]
    assert (
        "'owner/other' is no folder here, not complete in the cache of the hub, and the hub cannot"
        in hub[network][1]["error"]
    )


def test_any_other_failure_is_one_line_too(monkeypatch):
    import huggingface_hub

    def fail(*arguments, **options):
        raise OSError(28, "No space\nleft")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"^'a/b' could not be downloaded \(OSError: .* No space left\);"):
        resolve("a/b")


def test_a_folder_is_returned_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(tmp_path / "a") == resolve(str(tmp_path / "a")) == resolve("~/a") == tmp_path / "a"
    assert resolve("a/b") == Path("a/b")  # looks like a hub id, but is here


def test_a_revision_of_a_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder, which has no revision 'main'; leave revision out"):
        resolve(tmp_path, "main")


def test_a_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    with pytest.raises(CheckpointError, match=f"is a file, expected a checkpoint's folder; pass '{tmp_path}'"):
        resolve(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"pass '{tmp_path}', where it is"):  # and not "pass .."
        resolve("model.safetensors")


def test_a_gguf_file_is_returned_as_it_is(tmp_path):
    (tmp_path / "model-Q4.gguf").write_bytes(b"GGUF")
    assert resolve(tmp_path / "model-Q4.gguf") == tmp_path / "model-Q4.gguf"
    with pytest.raises(CheckpointError, match="is a file, which has no revision 'v1'"):
        resolve(tmp_path / "model-Q4.gguf", "v1")
    for source in (str(tmp_path / "none.GGUF"), "owner/name.gguf"):
        with pytest.raises(CheckpointError, match="not found; expected a GGUF file"):
            resolve(source)
    with pytest.raises(ConfigError, match=r"config.json not found.*To load model-Q4.gguf, name the file itself"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "source",
    ["./x", "../x", "/x/y", "~/no such", "a/b/c", Path("a/b"), "~nobody/x", "a/", "a/b.json", "x.safetensors", "a\\b"],
)
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(source, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **o: pytest.fail("the hub was asked"))
    with pytest.raises(CheckpointError, match="folder not found"):
        resolve(source)


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_name_is_refused(source):
    with pytest.raises(CheckpointError, match="name is empty"):
        resolve(source)


@pytest.mark.parametrize("source", [5, b"a/b", None])
def test_what_is_no_name_is_refused(source):
    with pytest.raises(CheckpointError, match="expected a folder or a hub id"):
        resolve(source)


def test_one_of_a_hub_models_gguf_files_is_fetched_by_its_quantisation(hub):
    one, parts, none, several, no_model, unnamed = hub["ggufs"]
    assert one["file"].endswith("/model-Q4_K_M.gguf") and one["size"] == len("Q4_K_M")
    assert parts["file"].endswith("/f16/model-f16-00001-of-00002.gguf")
    wanted = [*(file for file in HAS_GGUF if file.startswith("f16/")), "model-Q4_K_M.gguf"]
    assert hub["fetched"]["owner/gguf"] == sorted(wanted)
    assert "0 GGUF files are Q3_K_S, expected one of" in none["error"] and "model-Q8_0.gguf" in none["error"]
    assert "5 GGUF files are model" in several["error"]
    assert "is neither a folder nor a hub model" in no_model["error"]
    assert "'owner/gguf': has GGUF files, no *.safetensors; say which, as in owner/gguf:Q4_K_M, of " in unnamed["error"]
    assert "f16/model-f16.gguf" in unnamed["error"] and "mmproj" not in unnamed["error"]
    for network in ("offline", "unreachable"):
        assert hub[network][2]["file"] == one["file"]
