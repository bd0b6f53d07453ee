"""Adapters: a row with one computes what the model with that one in its weights does, whatever its neighbours have."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import agree
from law import ROWS, alone, letters, requests_for, result, schedule
from lora import checkpoint, loaded_with, with_adapter, write_adapter
from safetensors.numpy import load_file, save_file
from test_glass import paths
from test_watch import LONG
from test_watch import law as law_of_edits

import nanollm_jax as nano
from nanollm_jax import glass
from nanollm_jax import params as parameters
from nanollm_jax.engine import buckets
from nanollm_jax.engine.engine import Engine
from nanollm_jax.engine.request import Request
from nanollm_jax.engine.timings import CompileWatch
from nanollm_jax.engine.warmup import warm

SHORT = 16

plain = lambda module, rank: 6.0 / rank  # noqa: E731
rooted = lambda module, rank: 6.0 / rank**0.5  # noqa: E731

forward = jax.jit(nano.forward, static_argnames="config")


def logits(model, which=None):
    """Of two rows of tokens; which: the number of each row's adapter."""
    config = model.config
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (2, 9)), jnp.int32)
    params = model.params if which is None else parameters.for_rows(model.params, jnp.asarray(which, jnp.int32))
    cache = nano.init_cache(config, 2, 16, jnp.float32, model.mesh)
    return np.asarray(forward(params, tokens, cache, config=config)[0])


CASES = {
    "llama": (".", {}),
    "gpt2": ("c_attn|c_proj|c_fc", {"fan_in_fan_out": True}),
    "qwen3": ("q_proj|v_proj|up_proj|down_proj", {}),
    "phi3": ("proj", {}),
    "gpt_neox": ("query_key_value|dense", {}),
    "mixtral": ("self_attn", {}),
    "gemma4_text": ("proj|per_layer_input_gate", {}),
}
FORMS = {
    "lora": ({}, plain),
    "rslora": ({"use_rslora": True}, rooted),
    "dora": ({"dora": True}, plain),
}


QUICK = [("llama", "lora"), ("gpt2", "dora")]
EVERY = [
    ("llama", "dora"), ("gpt2", "rslora"), ("qwen3", "lora"), ("phi3", "dora"), ("gpt_neox", "lora"), ("mixtral", "lora"),
    ("gemma4_text", "dora"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "form"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.parity) for one in EVERY)])
def test_a_row_with_an_adapter_is_the_model_with_it_in_its_weights(family, form, tmp_path):
    """Apart, merged, and merged, saved and loaded: the same logits, and beside it a row of the model as it is."""
    path, base = checkpoint(family, tmp_path)
    match, said = CASES[family]
    more, scale = FORMS[form]
    match = rf"^(?!.*(embed|norm|wte|wpe|ln_)).*({match})"
    tensors = write_adapter(tmp_path / "a", base, match, ranks=[("v_proj|c_fc", 7)], **more, **said)
    expected = logits(loaded_with(tmp_path / "by hand", path, with_adapter(base, tensors, scale)))
    plain_model = nano.load(path, dtype="float32")
    none = logits(plain_model)
    apart = nano.load(path, dtype="float32", adapters={"a": tmp_path / "a"})
    assert apart.adapters == ("a",) and np.abs(expected - none).max() > 0.05 * np.abs(none).max()
    found = logits(apart, [1, 0])
    agree(found[0], expected[0], 1e-4)
    agree(found[1], none[1], 1e-4)
    agree(logits(apart.adapted("a")), expected, 1e-4)
    np.testing.assert_array_equal(logits(apart), logits(apart.adapted(None)))
    merged = nano.load(path, dtype="float32", adapters={"a": tmp_path / "a"}, merge="a")
    assert merged.adapters == () and jax.tree.structure(merged.params) == jax.tree.structure(plain_model.params)
    agree(logits(merged), expected, 1e-4)
    back = nano.load(nano.save(merged, tmp_path / "back"), dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, back.params, merged.params)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A model with three adapters of different ranks, one of them DoRA."""
    folder = tmp_path_factory.mktemp("three")
    path, base = checkpoint("llama", folder, max_position_embeddings=600)
    for n, how in enumerate(({"rank": 3}, {"rank": 5, "dora": True}, {"rank": 2, "use_rslora": True})):
        write_adapter(folder / "abc"[n], base, "proj|lm_head", seed=n, **how)
    adapters = {name: folder / name for name in "abc"}
    return nano.load(path, dtype="float32", adapters=adapters), path, adapters


def mixed(model, count=12):
    """The requests of the law of load, of which each takes another adapter, or none: those that begin alike, too."""
    return [replace(one, adapter=n % 4) for n, one in enumerate(requests_for(model, count))]


def test_what_has_adapters_beside_it_is_not_written(three, tmp_path):
    """Nor with one of them taken for all rows; with one in its weights it is."""
    for model in (three[0], three[0].adapted("b")):
        with pytest.raises(nano.RequestError, match=r"adapters beside its weights.*merge="):
            nano.save(model, tmp_path / "to")
    assert not (tmp_path / "to").exists()
    merged = nano.load(three[1], dtype="float32", adapters={"a": three[2]["a"]}, merge="a")
    back = nano.load(nano.save(merged, tmp_path / "to"), dtype="float32")
    assert jax.tree.all(jax.tree.map(np.array_equal, back.params, merged.params))


def test_each_row_has_its_own_adapter_whatever_is_beside_it(three, monkeypatch):
    """The law of load with four worlds in one batch: ==, prefixes kept apart, nothing compiled."""
    model = replace(three[0], tokenizer=letters(three[0].config.vocab_size))
    monkeypatch.setitem(buckets.TOGETHER, "cpu", 2 * SHORT)
    requests = mixed(model)
    expected = alone(model, requests, piece=SHORT)
    engine = Engine(model, ROWS, piece=SHORT)
    warm(engine, 350, 400, scores=True)
    with CompileWatch() as watch:
        for seed in range(2):
            for ticket, expect in zip(schedule(engine, requests, seed, leave=0.0), expected, strict=True):
                assert result(ticket) == expect
    assert watch.programs == 0 and "hit" in {event.what for event in engine.events}


@pytest.mark.parity
def test_a_name_for_each_prompt_in_all_ways_to_ask(three):
    """generate, stream, chat's engine, score and embed take it; what was not loaded is refused by its name."""
    model = three[0]
    prompts, names = [[5, 6, 7], [5, 6, 7], [9]], ["b", None, "c"]
    every = nano.generate(model, prompts, max_new_tokens=9, adapter=names)
    own = [
        nano.generate(model, prompt, max_new_tokens=9, adapter=name, rows=8)
        for prompt, name in zip(prompts, names, strict=True)
    ]
    assert [one.token_ids for one in every] == [one.token_ids for one in own]
    assert every[0].token_ids != every[1].token_ids
    for name in ("b", None):
        alone = model.adapted(name)
        expected, found = nano.score(alone, [[5, 6, 7, 8]])[0], nano.score(model, [[5, 6, 7, 8]], adapter=name)[0]
        agree(found.logprobs, expected.logprobs, 1e-5)
        agree(nano.embed(model, [5, 6], adapter=name), nano.embed(alone, [5, 6]), 1e-5)
    answer = nano.stream(model, [5, 6, 7], max_new_tokens=9, adapter="b", rows=8)
    list(answer)
    assert answer.generation.token_ids == own[0].token_ids
    with pytest.raises(nano.RequestError, match=r"there is no adapter 'd'; loaded are a, b, c"):
        nano.generate(model, [1], adapter="d")
    with pytest.raises(nano.RequestError, match=r"there is no adapter 'd'; none was loaded"):
        nano.generate(model.adapted("a"), [1], adapter="d")
    with pytest.raises(nano.RequestError, match="adapter has 2 values for 1 prompts"):
        nano.generate(model, [1], adapter=["a", "b"])


@pytest.mark.parity
def test_guesses_change_no_token_of_a_row_with_an_adapter(three):
    prompts = [[5, 6, 7, 5, 6, 7, 5], [5, 6, 7, 5, 6, 7, 5]]
    plain, guessed = (
        nano.generate(three[0], prompts, max_new_tokens=30, adapter=["a", "b"], speculate=how)
        for how in (None, "lookup:3")
    )
    assert [one.token_ids for one in guessed] == [one.token_ids for one in plain]


@pytest.mark.parity
def test_adapters_of_layers_with_states_on_one_device_and_on_a_mesh(tmp_path):
    """A rank is no axis of the config's, whose small letters count heads and widths of a recurrent layer."""
    path, base = checkpoint("qwen3_5_text", tmp_path)
    tensors = write_adapter(tmp_path / "a", base, "_proj")
    expected = loaded_with(tmp_path / "by hand", path, with_adapter(base, tensors, plain))
    how = {"dtype": "float32", "adapters": {"a": tmp_path / "a"}}
    agree(logits(nano.load(path, **how), [1, 1]), logits(expected), 1e-4)
    spread = nano.load(path, **how, mesh=nano.make_mesh(1, 3))
    one, many = (nano.generate(m, [5, 6, 7], max_new_tokens=4) for m in (expected, spread.adapted("a")))
    assert one.token_ids == many.token_ids
    agree(one.logprobs, many.logprobs, 1e-4)
    agree(nano.embed(spread, [5, 6], adapter="a"), nano.embed(expected, [5, 6]), 1e-4)


@pytest.mark.parity
def test_adapters_on_a_mesh_that_divides_nothing(three):
    """Loaded onto it, or spread from one device: heads made up, ranks whole, gains of DoRA as on one device."""
    one, path, adapters = three
    mesh = nano.make_mesh(2, 3)
    expected = logits(one, [2, 1])
    asked = {"max_new_tokens": 9, "adapter": ["b", None, "c", "a"]}
    tokens = [answer.token_ids for answer in nano.generate(one, [[5, 6, 7]] * 4, **asked)]
    for model in (nano.load(path, dtype="float32", mesh=mesh, adapters=adapters), nano.shard(one, mesh)):
        assert model.adapters == ("a", "b", "c")
        agree(logits(model, [2, 1]), expected, 1e-4)
        assert [answer.token_ids for answer in nano.generate(model, [[5, 6, 7]] * 4, **asked)] == tokens
    merged = nano.load(path, dtype="float32", mesh=mesh, adapters={"b": adapters["b"]}, merge="b")
    agree(logits(merged)[0], expected[0], 1e-4)
    box = nano.watch(model, [TEXT, TEXT], keep=["layers.*.out", "final_norm"], max_new_tokens=4, adapter=[None, "b"])
    for name in ("lens", "contributions", "saliency", "tree"):
        agree(OF_TEXTS[name](box, row=1), OF_TEXTS[name](one.adapted("b"), box.tokens[1]), 1e-3)


TEXT, OTHER, AIM = [5, 6, 7, 5, 8], [5, 6, 9, 5, 8], {"token": 7, "against": 60}
# of a text that a row of a box has, or that is given with a model
OF_TEXTS = {
    "lens": lambda *source, **row: glass.lens(*source, k=3, places=["layers.*.out", "final_norm"], **row).logprobs[:, :5],
    "contributions": lambda *source, **row: shares(glass.contributions(*source, **AIM, **row)),
    "ablate": lambda *source, **row: glass.ablate(*source, parts="mlps", **AIM, **row).values,
    "saliency": lambda *source, **row: glass.saliency(*source, **AIM, method="integrated", steps=3, **row).scores,
    "tree": lambda *source, **row: [branch.total for _, branch in paths(glass.tree(*source, width=2, depth=2, **row))],
}  # fmt: skip
OF_MODELS = {
    "patch": lambda model: glass.patch(model, TEXT, OTHER, **AIM).values,
    "steer": lambda model: glass.steer(model, [(TEXT, OTHER)], "layers.1.out").vector,
    "sampling_lab": lambda model: glass.sampling_lab(model, TEXT, [nano.Sampling(top_k=5)], max_new_tokens=4).mass,
}  # fmt: skip


def shares(found):
    return [*found.heads.flat, *found.mlps, found.embedding, found.bias, found.total, found.logit]


def watched(three):
    """Rows of one batch with different adapters, changed from a position on; and who wrote each, with it in the weights."""
    model, path, adapters = three
    merged = {name: nano.load(path, dtype="float32", adapters={name: adapters[name]}, merge=name) for name in "ab"}
    asked = {"keep": ["layers.*.out", "final_norm"], "max_new_tokens": 4, "adapter": ["b", None, "a"]}
    return nano.watch(model, [TEXT] * 3, **asked), [merged["b"], nano.load(path, dtype="float32"), merged["a"]]


QUICK_TOOLS = ("contributions", "lens")


@pytest.mark.parametrize(
    "rows", [(0,), pytest.param((0, 1, 2), marks=pytest.mark.parity)], ids=["one tool", "every tool, every row"]
)
def test_tools_on_a_row_with_an_adapter_read_with_it(three, rows):
    """What they say of it is what they say of the model with the adapter in its weights."""
    box, alone = watched(three)
    for name, tool in OF_TEXTS.items():
        if len(rows) > 1 or name in QUICK_TOOLS:
            for row in rows:
                expected = np.asarray(tool(alone[row], box.tokens[row]))
                agree(tool(box, row=row), expected, 1e-4, np.abs(expected).max())
    if len(rows) == 1:
        return
    for tool in OF_MODELS.values():
        agree(tool(three[0].adapted("b")), tool(alone[0]), 1e-4)
    for row, one in enumerate(alone):
        found, expected = glass.story(box, row=row), glass.story(nano.watch(one, [TEXT], max_new_tokens=4))
        assert found.head["adapter"] == ("b", None, "a")[row]
        numbers = lambda story, name: story.arrays[name][1].astype(np.float32)  # noqa: E731
        for name in ("lens.chances", "heads.weights", "shares.heads"):
            agree(numbers(found, name), numbers(expected, name), 1e-2)
        assert np.abs(numbers(found, "shares.rest")).max() < 1e-4 * np.abs(numbers(found, "shares.heads")).max()


@pytest.mark.parity
def test_the_law_of_edits_with_an_adapter_in_each_row(three):
    """One pass with the adapter in the weights says what the cached generation of that row does, changed or not."""
    model, path, adapters = three
    merged = {name: nano.load(path, dtype="float32", adapters={name: adapters[name]}, merge=name) for name in "ab"}
    alone = [merged["b"], nano.load(path, dtype="float32"), merged["a"], merged["b"]]
    law_of_edits(model, LONG, alone, adapter=["b", None, "a", "b"], rows=2)


def test_eight_bits_with_an_adapter(three):
    """What is beside a weight is added to what the weight in 8 bits gives."""
    _, path, adapters = three
    eight = nano.load(path, dtype="int8", adapters=adapters)
    found = logits(eight, [1, 0])
    agree(found[1], logits(nano.load(path, dtype="int8"))[1], 1e-4)
    assert np.abs(found[0] - logits(three[0], [1, 0])[0]).max() < 0.1 * np.abs(found[0]).max()


def changed(folder, config=None, tensors=None, **values):
    """A copy of an adapter's folder with other keys in its config, or other tensors."""
    made = folder.parent / f"changed-{len(list(folder.parent.iterdir()))}"
    made.mkdir()
    said = json.loads((folder / "adapter_config.json").read_text()) | values
    (made / "adapter_config.json").write_text(json.dumps(said))
    save_file(
        load_file(folder / "adapter_model.safetensors") if tensors is None else tensors,
        made / "adapter_model.safetensors",
    )
    return made


REFUSED = {
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING', which is not supported"),
    "layers twice": ({"layer_replication": [[0, 2]]}, r"layer_replication is \[\[0, 2\]\]"),
    "experts": ({"target_parameters": ["mlp.experts.up"]}, "target_parameters"),
    "changes its base": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "a flag": ({"use_rslora": 1}, "use_rslora is 1"),
    "another rank": ({"r": 7}, "is of rank 4; adapter_config.json says 7"),
    "no number": ({"lora_alpha": "8"}, "alpha of all modules is '8'"),
    "endless": ({"alpha_pattern": {"(a+)+b": 3}}, r"alpha_pattern has '\(a\+\)\+b'"),
    "broken": ({"alpha_pattern": {"[": 3}}, r"alpha_pattern has '\['"),
    "unknown": ({"something_new": 3}, "something_new is 3"),
}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    path, base = checkpoint("llama", folder)
    return path, write_adapter(folder / "a", base, "q_proj"), folder / "a"


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_adapter_says_is_honoured_or_refused_by_its_name(name, one):
    path, _, folder = one
    values, message = REFUSED[name]
    with pytest.raises(nano.CheckpointError, match=message):
        nano.load(path, adapters={"a": changed(folder, **values)})


def test_tensors_that_do_not_fit_are_named(one):
    path, tensors, folder = one
    first = next(iter(tensors))
    module = first.removesuffix(".lora_A.weight")

    def refused(message, drop=(), merge=None, **new):
        kept = {key: value for key, value in tensors.items() if key not in drop} | new
        with pytest.raises(nano.CheckpointError, match=message):
            nano.load(path, adapters={"a": changed(folder, tensors=kept)}, merge=merge)

    refused(r"has no lora_A of model\.layers\.0\.self_attn\.q_proj", drop=[first])
    refused("has shape", **{first: tensors[first][:, :-1].copy()})
    refused("infinite or NaN", **{first: tensors[first] * np.float32(np.nan)})
    refused("is of model.layers.9.self_attn.q_proj", **{first.replace(".0.", ".9."): tensors[first]})
    refused(
        r"adapts model\.embed_tokens and only", **{"base_model.model.model.embed_tokens.lora_A.weight": tensors[first]}
    )
    whole = {"base_model.model.model.norm.weight": np.ones(48, np.float32)}
    refused(r"has final_norm\.scale whole, with other numbers than the model; load it with merge=", **whole)
    refused("has shape", merge="a", **{"base_model.model.model.norm.weight": np.ones(47, np.float32)})
    merged = nano.load(path, adapters={"a": changed(folder, tensors=tensors | whole)}, merge="a")
    np.testing.assert_array_equal(merged.params["final_norm"]["scale"], 1)
    bias = np.arange(48, dtype=np.float32)
    key = f"{module}.base_layer.bias"
    said = changed(folder, tensors=tensors | {key: bias}, bias="lora_only")
    merged, plain_model = nano.load(path, adapters={"a": said}, merge="a"), nano.load(path)
    own, before = (model.params["layers"][0]["attention"]["bqkv"] for model in (merged, plain_model))
    np.testing.assert_array_equal(np.asarray(own)[:, :-2].reshape(48), bias)
    np.testing.assert_array_equal(own[:, -2:], before[:, -2:])
    with pytest.raises(nano.CheckpointError, match=r"merge is 'b' and adapters has a; expected that one alone"):
        nano.load(path, adapters={"a": folder}, merge="b")
    with pytest.raises(nano.CheckpointError, match="adapters is 'a'; expected a mapping"):
        nano.load(path, adapters="a")


def test_what_no_text_goes_through_is_left_out_of_an_adapter(tmp_path):
    """A tower for images, and keys of a layer that looks at another's, which trainers adapt as they do the rest."""
    path, base = checkpoint("gemma4_text", tmp_path)
    needed = write_adapter(tmp_path / "a", base, r"q_proj|k_proj|per_layer_input_gate|per_layer_model_projection")
    assert {name.split(".layers.")[-1] for name in needed if "k_proj.lora_A" in name} == {
        f"{n}.self_attn.k_proj.lora_A.weight" for n in (0, 1)
    }
    modules = (
        "layers.3.self_attn.k_proj",
        "layers.2.self_attn.v_proj",
        "vision_tower.x.q_proj",
        "audio_tower.layers.1.linear",
    )
    unused = {f"model.{module}.weight": np.zeros((6, 32), np.float32) for module in modules}
    more = write_adapter(tmp_path / "more", unused, "proj|linear")
    both, alone = (
        nano.load(path, adapters={"a": changed(tmp_path / "a", tensors=tensors)}) for tensors in (needed | more, needed)
    )
    jax.tree.map(np.testing.assert_array_equal, both.params, alone.params)
    write_adapter(tmp_path / "table", base, "embed_tokens_per_layer")
    for name, said in (
        ("more", r"is of model\.audio_tower.* and 1 more alone, which text does not go through"),
        ("table", r"adapts model\.embed_tokens_per_layer \(inputs\.tokens\), and only matrices"),
    ):
        with pytest.raises(nano.CheckpointError, match=said):
            nano.load(path, adapters={"a": tmp_path / name})


def test_experts_are_refused_by_their_name(tmp_path):
    path, base = checkpoint("mixtral", tmp_path)
    write_adapter(tmp_path / "a", base, r"experts\.0\.w1")
    with pytest.raises(
        nano.CheckpointError, match=r"adapts .*experts\.0\.w1 \(layers\.0\.mlp\.up\), and only matrices of"
    ):
        nano.load(path, adapters={"a": tmp_path / "a"})


@pytest.mark.parity
def test_the_output_of_a_model_whose_embedding_is_tied_is_adapted_alone(tmp_path):
    """What is looked up stays as it is, so it can be kept beside the table and not merged into it."""
    path, base = checkpoint("gemma", tmp_path)
    table = {"lm_head.weight": base["model.embed_tokens.weight"]}
    tensors = write_adapter(tmp_path / "a", table, "lm_head")
    apart = nano.load(path, dtype="float32", adapters={"a": tmp_path / "a"})
    head = with_adapter(table, tensors, plain)["lm_head.weight"]
    _, values = nano.observe(nano.load(path, dtype="float32"), [5, 6, 7])
    expected = values["final_norm"][0] @ head.T
    found, _ = nano.observe(apart.adapted("a"), [5, 6, 7])
    agree(found[0], expected, 1e-4)
    with pytest.raises(nano.CheckpointError, match="of lm_head; load it without merge"):
        nano.load(path, adapters={"a": tmp_path / "a"}, merge="a")


@pytest.mark.parity
def test_the_model_of_a_request_is_an_adapter(three):
    """At the same time: answers of each, those that they have alone; the models are listed."""
    httpx2, serving, service = (
        pytest.importorskip(name) for name in ("httpx2", "serving", "nanollm_jax.serve.service")
    )
    model = replace(three[0], tokenizer=letters(three[0].config.vocab_size))
    how = {"names": ("base",), "context": 64, "hosts": serving.HOSTS}

    def made(**options):
        return service.Service(model, Engine(model, 2, piece=SHORT), service.Options(**how | options), nano.__version__)

    with pytest.raises(nano.RequestError, match="both called 'a'"):
        made(names=("a",))
    with serving.running(made()) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        listed = client.get("/v1/models").json()["data"]
        assert [one["id"] for one in listed] == ["base", "a", "b", "c"]
        assert [one.get("parent") for one in listed] == [None, "base", "base", "base"]
        body = {"prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0, "logprobs": 0}
        with ThreadPoolExecutor(4) as pool:
            names = ["a", "base", "b", "c"]
            found = [
                one.json()
                for one in pool.map(lambda n: client.post("/v1/completions", json=body | {"model": n}), names)
            ]
        assert [one["model"] for one in found] == names
        for name, one in zip(["a", None, "b", "c"], found, strict=True):
            engine = Engine(model, 2, piece=SHORT)
            ticket = engine.submit(Request((5, 6, 7), 8, nano.Sampling(temperature=0.0), adapter=model.adapter(name)))
            while not engine.idle:
                engine.step()
            assert one["choices"][0]["logprobs"]["token_logprobs"] == ticket.answer.logprobs
        vectors = [
            client.post("/v1/embeddings", json={"input": [5, 6], "model": n}).json()["data"][0]["embedding"]
            for n in ("a", "b")
        ]
        agree(vectors[0], nano.embed(model, [5, 6], adapter="a"), 1e-5)
        assert vectors[0] != vectors[1]
        assert (
            client.post("/v1/completions", json=body | {"model": "d"})
            .json()["error"]["message"]
            .endswith("base, a, b, c.")
        )


def test_the_command_line_takes_adapters(three, tmp_path, capsys):
    """The one that is named is taken; each line of a file may take another."""
    from nanollm_jax.cli import run as command

    lines = tmp_path / "lines"
    lines.write_text("".join(json.dumps({"prompt": [5, 6, 7], "adapter": name}) + "\n" for name in ("a", None, "b")))
    named = [part for name, folder in three[2].items() for part in ("--adapter", f"{name}={folder}")]
    run = ["generate", "--model", str(three[1]), "--dtype", "float32", "--max-new-tokens", "6", "--temperature", "0"]
    assert command([*run, "--no-compile-cache", *named, "--input", str(lines)]) == 0
    found = [json.loads(line)["token_ids"] for line in capsys.readouterr().out.splitlines()]
    greedy, names = nano.Sampling(temperature=0.0), ["a", None, "b"]
    expected = nano.generate(three[0], [[5, 6, 7]] * 3, max_new_tokens=6, adapter=names, sampling=greedy)
    assert sorted(found) == sorted(one.token_ids for one in expected)
    file = ["--input", str(lines), "--output", str(tmp_path / "merged")]
    lines.write_text(json.dumps({"prompt": [5, 6, 7]}) + "\n")
    assert command([*run, "--no-compile-cache", *named[:2], "--merge", "a", *file]) == 0
    assert json.loads((tmp_path / "merged").read_text())["token_ids"] == expected[0].token_ids
    capsys.readouterr()
    for wrong, message in (
        (named, "one answer has one"), (["--adapter", "x"], "expected NAME=SOURCE"),
        ([*named, "--merge", "a"], "the name of the one --adapter a=SOURCE"), (["--merge", "a"], "of the one --adapter"),
    ):  # fmt: skip
        assert command([*run, *wrong, "hi"]) != 0
        assert message in " ".join(capsys.readouterr().err.split())
