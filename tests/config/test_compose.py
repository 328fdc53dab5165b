"""Composition, messages and the command line; nothing here imports torch in the process that is timed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import MissingConfigException

from hydra_app import main
from t2i.config.check import allowed, check_names, check_node, constructor, fits
from t2i.config.compose import ConfigError, compose, difference, no_such_choice, plain, plan, quoted

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = [
    "a red circle", "two red circles, above a blue square", "a cat's hat", 'a sign that says "stop"', "time: 3:30",
    "x=1", "a=b, c=d", "true", "false", "null", "none", "3", "3.5", "1e5", "-1", "a\\b\\n", "trailing backslash \\",
    "café au lait", "naïve Zürich straße", "画一只猫", "قطة حمراء", "🍎 an apple 🍏", "{a: b}", "[1, 2, 3]", "(x)",
    "${oc.env:HOME}", "costs ${5}", "$HOME", "# not a comment", "  spaces around  ", "a\nnew line", "100% & more!",
    "~tilde ?question *star @at", "???",
]  # fmt: skip


def run(*arguments: str, cwd: Path | None = None, code: str | None = None) -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr, and the seconds that it computed: what else the machine does is not measured."""
    before = os.times()
    command = [sys.executable, "-c", code] if code else [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, timeout=240)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return done.returncode, done.stdout, done.stderr, seconds


@pytest.fixture
def ckpt(tmp_path: Path) -> str:
    path = tmp_path / "epoch=1-step=10, it's.ckpt"
    path.touch()
    return str(path)


def test_captions_arrive_to_the_letter(ckpt: str) -> None:
    assert len(CAPTIONS) >= 33
    for caption in CAPTIONS:
        config = compose([f"ckpt={ckpt}", f"prompt={caption}"], "sample")
        assert config["prompt"] == caption
        assert config["ckpt"] == ckpt


def test_null_is_a_caption_but_no_path(ckpt: str) -> None:
    config = compose([f"ckpt={ckpt}", "prompt=null", "prompts=null"], "sample")
    assert (config["prompt"], config["prompts"]) == ("null", None)


def test_paths_may_refer_to_keys() -> None:
    config = compose(["model=vqgan", "paths.runs=/tmp/a, b=c", "resume=${paths.runs}/x"], files=False)
    assert config["resume"] == "/tmp/a, b=c/x"


def test_texts_are_quoted_and_nothing_else() -> None:
    words = ["seed=0,1", "model=vqgan", "data.root=a,b", "+data.root=x", "name=null", "resume=null", "experiment=a"]
    assert quoted(words) == ["seed=0,1", "model=vqgan", 'data.root="a,b"', '+data.root="x"', "resume=null",
                             "experiments=a"]
    for caption in CAPTIONS:
        (word,) = quoted([f"prompt={caption}"])
        assert quoted([word]) == [word]  # processes that a run starts get its words
        assert plain(word) == f"prompt={caption}"


def test_hydras_own_quotes_are_read_as_hydra_does(ckpt: str) -> None:
    for word in ('prompt="a, b: c=d"', "prompt='a, b: c=d'"):
        assert compose([f"ckpt={ckpt}", word], "sample")["prompt"] == "a, b: c=d"
    assert compose([f"ckpt={ckpt}", "prompt='a' or 'b'"], "sample")["prompt"] == "'a' or 'b'"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=vqgan", "data.batch_sze=3", "learning_rate=1"], ["data.batch_size", "model.learning_rate"]),
        (["modle=vqgan", "model=vqgan"], ["modle", "did you mean model"]),
        (["model=vqgn"], ["model=vqgn", "did you mean vqgan", "clip, dfgan, prior, prior_305m"]),
        (["model/quantizer=vqq", "model=vqgan"], ["model/quantizer=vqq", "ema, fsq, gumbel, lfq, product, "]),
        (["model/quantizer=vq", "model=clip"], ["model/quantizer", "model=clip"]),
        (["model=vqgan", "trainer=ddpp"], ["trainer=ddpp", "auto, cpu, ddp, fsdp, gpu"]),
        (["experiments=quickstart/clp"], ["quickstart/clp", "quickstart/clip"]),
        (["experiments=nothing"], ["experiments=nothing", "quickstart"]),
        ([], ["model= is needed", "clip, dfgan, prior, prior_305m", "quickstart"]),
        (["model=prior"], ["model.tokenizer.path= is needed", "text_encoder.path= is needed"]),
        (["model=vqgan", "data=folder"], ["data.root= is needed"]),
        (["model=vqgan", "nonsense"], ["'nonsense' is no setting"]),
        (["model=vqgan", "seed=0,1"], ["seed has several values", "-m"]),
        (["model=vqgan", "model.gan_loss=foo"], ["model.gan_loss=foo", "one of hinge, vanilla"]),
        (["model=vqgan", "trainer.max_steps=no"], ["trainer.max_steps=no", "a whole number >= 1"]),
        (["model=vqgan", "data.workers=-1"], ["data.workers=-1", ">= 0"]),
        (["model=vqgan", "data.image_size=50"], ["image_size=50", "factor 16", "48 and 64"]),
        (["model=vqgan", "+model.wings=2"], ["model.wings", "no such argument"]),
        (["model=vqgan", "+data.foo=1"], ["data.foo: Shapes has no such argument"]),
        (["model=vqgan", "+model.quantizer.bar=2"], ["model.quantizer.bar: EMA has no such argument"]),
        (["model=vqgan", "+trainer.foo=1"], ["trainer.foo: there is no such key"]),
        (["model=vqgan", "+trainer.max_step=1"], ["did you mean trainer.max_steps"]),
        (["model=vqgan", "++foo=1"], ["foo: there is no such key; the config has callbacks"]),
        (["model=vqgan", "+callbacks.x=1"], ["callbacks.x: there is no such key"]),
        (["model=vqgan", "~trainer"], ["~trainer: this cannot be taken out"]),
        (["model=vqgan", "hydra.run.dri=x"], ["hydra.run.dri", "did you mean hydra.run.dir"]),
        (["model=vqgan", "hydra/launcher=jobli"], ["hydra/launcher=jobli", "did you mean joblib"]),
        (["model=vqgan", "sweep.jobs=2"], ["instead of sweep.jobs= write hydra.launcher.n_jobs="]),
        (["model=vqgan", "sweep.launcher=joblib"], ["hydra/launcher=joblib"]),
        (["model=vqgan", "+trainer={accumulate: 2}"], ["trainer.accumulate is called trainer.accumulate_grad_batches"]),
        (["model=vqgan", "model._target_=mine.Model"], ["model._target_=mine.Model: there is no module mine"]),
        (["model=vqgan", "model._target_=torch.nn.Linar"], ["torch.nn has no such class"]),
        (["model=vqgan", "~model.quantizer"], ["model.quantizer is needed"]),
        (["model=vqgan", "model.quantizer.gradient=x", "model/quantizer=vq"], ["gradient=x", "ste, rotation"]),
        (["model=vqgan", "name=${nme}"], ["nme"]),
        (["model=prior", "model.tokenizer.path=/no.ckpt", "text_encoder.path=x"], ["/no.ckpt", "no such file"]),
    ],
)  # fmt: skip
def test_mistakes_name_what_is_allowed(overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    for part in expected:
        assert part in str(caught.value)


def test_recipes_that_are_gone_say_what_takes_their_place() -> None:
    for old, new in (("scenes", "shapes"), ("scenes/prior", "shapes/prior"), ("shapes/clip", "quickstart/clip")):
        with pytest.raises(ConfigError) as caught:
            compose([f"experiments={old}"])
        assert str(caught.value) == f"experiments={old} is no longer there: experiments={new} takes its place"


@pytest.mark.parametrize("setting", ["neighbours=true", "neighbours=false", "running_sums=true", "text_noise=0.3",
                                     "positions=learned", "part_heads=pointer"])  # fmt: skip
def test_removed_options_are_told_in_a_line(setting: str) -> None:
    told = "this option was removed in this version; leave it out, or use the version before"
    with pytest.raises(ConfigError) as caught:
        compose(["model=prior", f"model.{setting}"])
    assert str(caught.value) == f"model.{setting.partition('=')[0]}: {told}"
    with pytest.raises(ConfigError) as caught:
        compose(["model=prior", "model.tokenizer.path=a", "text_encoder.path=b", f"+model.{setting}"], files=False)
    assert str(caught.value) == f"model.{setting}: {told}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [("temperature=-1", "temperature=-1"), ("top_p=2", "from 0 to 1"), ("n=0", "n=0"), ("prompt= ", "prompt is empty")],
)
def test_mistakes_in_drawing(ckpt: str, override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        compose([f"ckpt={ckpt}", override], "sample")


def test_all_faults_at_once() -> None:
    overrides = ["model=vqgan", "model.gan_loss=foo", "data.image_size=50", "seed=-1", "model.betas=[0.5]"]
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert all(key in str(caught.value) for key in ("gan_loss", "image_size", "seed", "betas"))


def test_names() -> None:
    assert compose(["model=vqgan"])["name"] == "vqgan-shapes"
    assert compose(["model=vqgan", "name=mine"])["name"] == "mine"
    assert compose(["experiments=quickstart/clip"])["name"] == "quickstart/clip"
    assert compose(["model/quantizer=fsq"])["model"]["quantizer"]["_target_"] == "t2i.quantizers.fsq.FSQ"


def test_one_key_bounds_the_gradients_of_every_model_and_no_gan_claims_a_best_checkpoint() -> None:
    text = ["text_encoder.path=x"]
    needed = {"clip": [], "prior": ["model.tokenizer.path=x", *text], "vqgan": [], "dfgan": text, "stackgan1": text,
              "stackgan2": ["model.stage1.path=x"]}
    for name, words in needed.items():
        found = compose([f"model={name}", *words, "trainer.gradient_clip_val=3"], files=False)
        # The others take it as Lightning has it.
        assert found["model"].get("gradient_clip") == (None if name in ("clip", "prior") else 3)
        gan = name.startswith(("dfgan", "stackgan"))
        assert found["trainer"]["monitor"] == (None if gan else "val/loss")
    named = compose(["model=dfgan", *text, "trainer.monitor=val/fd_clip"], files=False)
    assert named["trainer"]["monitor"] == "val/fd_clip"


def test_unused_text_encoder_needs_no_path() -> None:
    assert compose(["model=clip"])["text_encoder"] is None


def test_plan_of_a_pipeline() -> None:
    stages = plan(["experiments=quickstart", "name=my try", "data.batch_size=4"])
    assert [stage.name for stage in stages] == ["quickstart/clip", "quickstart/vqgan", "quickstart/prior"]
    assert stages[0].command == "python train.py experiments=quickstart/clip 'group=my try' data.batch_size=4"
    config = compose(stages[2].overrides, files=False)
    assert config["name"] == "my try/prior"
    assert config["model"]["tokenizer"]["path"] == "runs/my try/vqgan/last.ckpt"
    assert config["data"]["batch_size"] == 4


def test_difference() -> None:
    a = {"data": {"size": 1, "old": 2}, "betas": [0.5, 0.9]}
    b = {"data": {"size": 3, "new": {"x": 4}}, "betas": (0.5, 0.9)}
    assert difference(a, b) == ["data.size: 1 -> 3", "data.old: 2 -> (absent)", "data.new.x: (absent) -> 4"]
    assert difference(a, json.loads(json.dumps(a))) == []


def test_a_missing_plugin_is_named() -> None:
    error = MissingConfigException(missing_cfg_file="hydra/launcher/joblib", message="", options=["basic"])
    assert no_such_choice(error, ["hydra/launcher=joblib"]) == (
        "hydra/launcher=joblib needs a package that is not installed: pip install hydra-joblib-launcher"
        " (in t2i's extra sweeps)")


@pytest.mark.parametrize(("words", "left"), [(["~logger"], "logger"), (["~callbacks"], "callbacks")])
def test_what_may_be_taken_out(words: list[str], left: str) -> None:
    assert compose(["model=vqgan", *words])[left] == {}
    assert "plots" not in compose(["model=vqgan", "~callbacks.plots"])["callbacks"]


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [0, -3], [True, 1.0, "1", None]),
        ("float", [1, 0.5], [False, "x"]),
        ("bool", [True], [1, "true"]),
        ("int | None", [None, 2], ["x"]),
        ("Literal['a', 'b'] | None", ["a", None], ["c", 1]),
        ("tuple[float, float]", [[1, 2.0]], [[1], [1, 2, 3], 1, ["a", "b"]]),
        ("tuple[int, ...]", [[], [1, 2, 3]], [[0.5]]),
        ("Sequence[int]", [[1]], ["1", 3]),
        ("Mapping[str, float] | None", [{"a": 1}, None], [{"a": "b"}, 3]),
        ("nn.Module", [{"anything": 1}, 3], []),
    ],
)
def test_fits(annotation: str, good: list, bad: list) -> None:
    node = ast.parse(annotation, mode="eval").body
    assert all(fits(value, node) for value in good)
    assert not any(fits(value, node) for value in bad)
    assert allowed(node)


def test_constructors_are_read_without_import() -> None:
    found = constructor("t2i.models.vqgan.load_tokenizer")
    assert found is not None
    assert "path" in found.arguments
    assert constructor("t2i.models.vqgan.Nothing") is None
    for target in ("torch.nn.Linear", "pytorch_lightning.callbacks.EarlyStopping", "os.path.join"):
        assert constructor(target) is not None
    (line,) = check_node("model", {"_target_": "t2i.models.vqgan.VQGANN"})
    assert line == "model._target_=t2i.models.vqgan.VQGANN: t2i.models.vqgan has no such class"


def within(seconds: float, *arguments: str) -> tuple[int, str, str]:
    """What it says, within so many seconds in one of three starts."""
    for _ in range(3):
        code, out, err, taken = run(*arguments)
        if taken < seconds:
            return code, out, err
    pytest.fail(f"{arguments} took {taken:.1f} s; allowed are {seconds} s")


@pytest.mark.parametrize("door", ["train.py", "sample.py", "evaluate.py", "prepare.py"])
def test_help_is_quick(door: str) -> None:
    code, out, err = within(1.5, door, "--help")
    assert (code, err) == (0, "")
    assert door in out


def test_typo_is_quick() -> None:
    code, _, err = within(2, "train.py", "model=vqgan", "data.batch_sze=3")
    assert code == 2
    assert "data.batch_size" in err
    assert "Traceback" not in err


def test_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def here(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        with pytest.raises(SystemExit) as end:
            main("train")
        return int(end.value.code or 0), *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    assert here("--frobnicate")[0] == 2
    code, out, _ = here("model=clip", "--cfg", "job")
    assert code == 0
    assert "name: ${run_name:}" in out
    code, out, _ = here("model=clip", "--cfg", "job", "--resolve")
    assert "name: clip-shapes" in out.splitlines()
    code, out, _, _ = run("train.py", "experiment=quickstart/vqgan", "--info", "defaults", cwd=tmp_path)
    assert code == 0 and "experiments/quickstart/vqgan" in out
    code, _, err = here("model=clip", "+foo=1", "--cfg", "job", "--config-dir", "nowhere")
    assert (code, err) == (2, "error: --config-dir nowhere: there is no such folder\n")
    assert os.listdir(tmp_path) == []


def test_a_group_option_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "mine/data").mkdir(parents=True)
    (tmp_path / "mine/data/small.yaml").write_text("defaults: [shapes, _self_]\nsize: 7\n")
    code, out, err, _ = run("train.py", "model=clip", "data=small", "--config-dir", "mine", "--cfg", "job",
                            "--package", "data.size", cwd=tmp_path)
    assert (code, out) == (0, "7\n"), err


def test_shell_completion(tmp_path: Path) -> None:
    code, out, _, _ = run("train.py", "--shell-completion", "install=bash", cwd=tmp_path)
    assert code == 0 and "complete" in out


def test_composing_imports_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "src")!r})
import t2i.cli.app
from t2i import from_pretrained, load
from t2i.config.compose import compose
compose(["model=vqgan"])
heavy = {{"torch", "pytorch_lightning", "transformers", "numpy", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = run(code=code, cwd=tmp_path)  # from another folder: conf/ and experiments/ are found from anywhere
    assert done[0] == 0, done[2]


@pytest.mark.parametrize(
    ("body", "code", "shown"),
    [
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("return 75", 75, ""),
        ("return {'a': 1.0}", 0, ""),
        ("return {'missing': {'kid': '4 pictures'}}", 1, ""),
        ("import t2i.config.compose as c; c.compose([])", 2, "error: model= is needed"),
        ("int('x')", 1, "Traceback"),
    ],
)
def test_exit_codes(body: str, code: int, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "model=clip"])
    scope: dict[str, Any] = {}
    exec(f"def run(config, overrides):\n    {body}", scope)
    with pytest.raises(SystemExit) as end:
        main("train", scope["run"])
    assert (end.value.code or 0) == code
    assert shown in capsys.readouterr().err


def test_paths_are_relative_to_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose(["model=clip"])["paths"]["runs"] == "runs"
    assert os.listdir(tmp_path) == []


def test_of_a_missing_checkpoint_those_that_can_draw_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, kind in (("clip", "clip.CLIP"), ("prior", "prior.Prior"), ("vqgan", "vqgan.VQGAN"), ("unknown", None)):
        folder = tmp_path / "runs/a" / name
        folder.mkdir(parents=True)
        for file in ("best", "last", "previous"):
            (folder / f"{file}.ckpt").touch()
        held = "[" if kind is None else json.dumps({"model": {"_target_": f"t2i.models.{kind}"}})
        (folder / "config.json").write_text(held)
    with pytest.raises(ConfigError, match=r"; there is runs/a/prior/last\.ckpt, runs/a/unknown/last\.ckpt$"):
        compose(["ckpt=x.ckpt", "prompt=a"], "sample")
    with pytest.raises(ConfigError, match=r"; there is runs/a/clip/last\.ckpt, .*vqgan/last\.ckpt$"):
        compose(["ckpt=x.ckpt"], "evaluate")


@pytest.mark.parametrize(("key", "value"), [("edit", "null"), ("edit", "abc"), ("completion", "3")])
def test_a_group_of_keys_takes_no_value(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}={value}: its keys take a value each: {key}\.image="):
        compose(["ckpt=x", "prompt=a", f"{key}={value}"], "sample", files=False)


def test_a_typo_in_the_name_of_a_needed_group_is_told() -> None:
    with pytest.raises(ConfigError, match=r"modle: there is no such key \(did you mean model\?\)"):
        compose(["modle=vqgan"])


@pytest.mark.parametrize("name", ["..", ".", "/abs", "a/../b", "a//b", "a/", "", "a\nb", "*", "a*", ".hidden", "a/.b",
                                  "a:b", 'a"b', "a<b", "a|b", "a\\b", "a ", "a.", "\x1b[2J", "é" * 101, "x" * 201, "~"])
@pytest.mark.parametrize("key", ["name", "group"])
def test_names_stay_below_the_runs(key: str, name: str) -> None:
    (told,) = check_names({key: name})
    assert told.startswith(f"{key}=") and "a folder's name is needed" in told
    assert "\n" not in told and "\x1b" not in told


@pytest.mark.parametrize("word", ["name=a/../b", "group=a\nb"])
def test_composing_checks_names(word: str) -> None:
    with pytest.raises(ConfigError, match=f"^{word.partition('=')[0]}=.*a folder's name is needed"):
        compose(["model=vqgan", "data=shapes", word], files=False)


@pytest.mark.parametrize("name", ["a", "a/b/c", "été-2", "run_1.5", "a b", "_x", "x=1,y=2", "日本", "x" * 200, "1"])
def test_names_that_are_taken(name: str) -> None:
    assert compose(["model=vqgan", "data=shapes", f"name={name}"], files=False)["name"] == name


def test_a_stages_own_key_is_sent_to_the_stage():
    with pytest.raises(ConfigError, match=r"^model\.caption is a stage's own: give it to one of experiments=quickst"):
        compose(["experiments=quickstart", "model.caption=keys"])
    with pytest.raises(ConfigError, match=r"^data\.styles=openmoji: a list of names, as in \[a,b\], is needed"):
        compose(["experiments=emoji/prior", "data.styles=openmoji", "model.tokenizer.path=x"])
