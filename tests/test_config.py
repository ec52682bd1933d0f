"""Configuration: recipes changed from the command line, values of their types, and errors that help."""

import re

import pytest
import yaml

from bp import recipes
from bp.config import NAMED, make_parser, registry, resolve
from bp.errors import ConfigurationError

DIGITS = "data: {name: digits}\nmodel: {name: mlp}\n"


@pytest.mark.parametrize("recipe", recipes.names())
def test_every_recipe_resolves_and_its_yaml_resolves_to_the_same(recipe, tmp_path):
    config = resolve(recipe)
    assert config.name == recipe and recipes.description(recipe)
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml())
    assert resolve(str(path)) == config
    assert resolve(str(path)).to_yaml() == config.to_yaml()
    # Other YAML readers agree on what it says.
    assert yaml.safe_load(config.to_yaml())["optimizer"]["lr"] == config.optimizer.settings["lr"]


def test_the_command_line_comes_after_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {name: digits}\nmodel: {name: mlp, hidden: [8]}\noptimizer: {lr: 1e-4}\n")
    config = resolve(str(path))
    assert (config.name, config.model.settings["hidden"], config.optimizer.name) == ("mine", (8,), "adamw")
    assert config.optimizer.settings["lr"] == 1e-4
    words = "--optimizer.lr 1 --trainer.max-epochs=3 --data.batch_size 7 --model.hidden [4,5] --trainer.seed 0"
    config = resolve(str(path), words.split())
    assert config.optimizer.settings["lr"] == 1.0 and config.model.settings["hidden"] == (4, 5)
    assert config.trainer.max_epochs == 3 and config.data.batch_size == 7


def test_another_choice_on_the_command_line_starts_its_section_afresh():
    before = resolve("digits")
    config = resolve("digits", ["--optimizer.name", "sgd", "--optimizer.lr", "0.1"])
    assert config.optimizer.name == "sgd" and "betas" not in config.optimizer.settings
    assert config.optimizer.settings["weight_decay"] == 0.0 != before.optimizer.settings["weight_decay"]
    assert config.model == before.model
    # The same name again is no change.
    assert resolve("digits", [f"--optimizer.name={before.optimizer.name}"]) == before


@pytest.mark.parametrize(
    ("text", "words", "key", "value"),
    [
        ("optimizer: {lr: 1e-3}", "", "optimizer.lr", 1e-3),  # text to YAML 1.1
        ("optimizer: {lr: 1}", "", "optimizer.lr", 1.0),
        ("optimizer: {betas: [9e-1, 0]}", "", "optimizer.betas", (0.9, 0.0)),
        ("optimizer: {name: adafactor, eps: [null, 1e-3]}", "", "optimizer.eps", (None, 1e-3)),
        ("loss: {name: cross-entropy, weight: [1, 2e0]}", "", "loss.weight", (1.0, 2.0)),
        ("output_dir: 1e5", "", "output_dir", "1e5"),
        ("output_dir: null", "", "output_dir", None),
        ("output_dir: a", "--output-dir null", "output_dir", None),
        ("trainer: {max_steps: 5, max_epochs: null}", "", "trainer.max_epochs", None),
        ("trainer: {max_grad_norm: 1}", "--trainer.max_grad_norm=null", "trainer.max_grad_norm", None),
        ("data: {name: mnist, batch_size: 7}", "--data.name digits", "data.batch_size", 7),
        ("model: {name: cnn}", "--model.name mlp --model.hidden [8]", "model.hidden", (8,)),
        ("model: {name: mlp, hidden: [8]}", "--model.hidden []", "model.hidden", ()),
        ("schedule: {name: step}", "--schedule.step_size 3", "schedule.step_size", 3),
        ("trainer: {seed: x}", "--trainer.seed 3", "trainer.seed", 3),
        ("", "--data.augment false", "data.augment", False),
        ("", "--name #5", "name", "#5"),
        ("", "--name 2024-01-01", "name", "2024-01-01"),
        ("", "--name !!python/object/apply:os.abort", "name", "!!python/object/apply:os.abort"),
    ],
)
def test_values_have_their_types(tmp_path, text, words, key, value):
    path = tmp_path / "mine.yaml"
    sections = yaml.safe_load(DIGITS) | (yaml.safe_load(text) or {})
    path.write_text(yaml.safe_dump(sections))
    config = resolve(str(path), words.split())
    section, _, last = key.rpartition(".")
    found = config.to_dict()[section][last] if section else config.to_dict()[last]
    assert found == value
    assert repr(found) == repr(value)  # 1 is not 1.0, nor text
    path.write_text(config.to_yaml())
    assert resolve(str(path)) == config


BAD_YAML = [
    ("data: [1", "not valid YAML: .*line 1, column 9"),
    ("a: b: c", "not valid YAML"),
    ("data: !!python/object/apply:os.abort []", "could not determine a constructor for the tag"),
    ("data: !!python/name:os.abort", "could not determine a constructor for the tag"),
    ("[" * 5000, "not valid YAML"),
    ("name: !!int x", "not valid YAML"),
    ("name: \x00", "not valid YAML"),
    ("", "expected sections such as 'data:' and 'model:', got None"),
    ("- 1", r"expected sections .*, got \[1\]"),
    ("optimizer:", "optimizer: expected keys and values, got None"),
    ("data: {name: digits}", r"model.name is missing \(known: .*mlp"),
    ("model: {name: mlp}", r"data.name is missing \(known: .*digits"),
    ("data: {name: digts}\nmodel: {name: mlp}", "data.name: no data set 'digts'; did you mean 'digits'?"),
]
BAD_FILES = [
    ("data: {}", "the key 'data' comes twice"),
    ("trainr: {}", "trainr: unknown key; did you mean 'trainer'?"),
    ("trainer: 5", "trainer: expected keys and values, got 5"),
    ("1: 2", "1: unknown key"),
    ("trainer: {1: 2}", "trainer.1: unknown key"),
    ("trainer: {max_epoch: 5}", "trainer.max_epoch: unknown key; did you mean 'trainer.max_epochs'?"),
    ("trainer: {max_epochs: many}", "trainer.max_epochs: .*PositiveInt.* many"),
    ("trainer: {max_epochs: 2.5}", "trainer.max_epochs: .*PositiveInt.* 2.5"),
    ("trainer: {max_epochs: true}", "trainer.max_epochs: .*PositiveInt.* True"),
    ("trainer: {max_epochs: {a: 1}}", "trainer.max_epochs: Expected"),
    ("trainer: {max_epochs: 0}", "trainer.max_epochs: .*PositiveInt.* 0"),
    ("trainer: {max_epochs: null}", "expected trainer.max_epochs or trainer.max_steps"),
    ("trainer: {seed: {a: 1}}", "trainer.seed: "),
    ("trainer: {precision: bf16}", "trainer.precision: precision 'bf16' is not available on device 'cpu'"),
    ("device: tpu", "device: device 'tpu' is not one that bp has"),
    ("device: {a: 1}", "device: .*str"),
    ("name: 3", "name: .*str.* 3"),
    ("optimizer: {lr: null}", "optimizer.lr: .*float.* None"),
    ("optimizer: {lr: true}", "optimizer.lr: .*float.* True"),
    ("optimizer: {lr: [1]}", "optimizer.lr: .*float"),
    (f"optimizer: {{lr: {10**400}}}", "too large"),
    ("optimizer: {betas: [0.9]}", r"optimizer.betas: .*2 elements.* \[0.9\]"),
    ("optimizer: {class_path: os.abort}", "optimizer.class_path: unknown key.*'adamw' takes lr"),
    ("optimizer: {name: os.abort}", "optimizer.name: no optimizer 'os.abort'"),
    ("optimizer: {name: adam, groups: []}", "optimizer.groups: unknown key"),
    ("optimizer: {name: 3}", "optimizer.name: no optimizer '3'"),
    ("schedule: {name: warmup}", "schedule.name: no schedule 'warmup'"),
    ("schedule: {name: step}", "schedule.step_size.* required"),
    ("schedule: {name: multi-step, milestones: [a]}", "schedule.milestones: .*int.* a"),
    ("schedule: {name: multi-step, milestones: 3}", "schedule.milestones: .*Sequence.* 3"),
]
BAD_WORDS = [
    ("--model.name mpl", "--model.name: no model 'mpl'; did you mean 'mlp'?"),
    ("--model.name", "argument --model.name: expected one argument"),
    ("--model.hiden 3", "--model.hiden: unknown key; did you mean 'model.hidden'\\? .the model 'mlp' takes hidden"),
    ("--model.classes 3", "--model.classes: unknown key.*the model 'mlp' takes"),
    ("--model.activation rely", "--model.activation: .*'relu', 'leaky_relu'.* rely"),
    ("--model.hidden+ 3", r"--model.hidden\+: unknown key"),
    ("--model {class_path:os.abort}", "--model: unknown key"),
    ("--max_epochs 3", "--max_epochs: unknown key; did you mean 'trainer.max_epochs'?"),
    ("--trainer.max_epoc 3", "--trainer.max_epoc: unknown key; did you mean 'trainer.max_epochs'?"),
    ("--trainer 3", "--trainer: unknown key"),
    ("-- 3", "--: unknown key"),
    ("-x", "[Uu]nrecognized arguments: -x"),
    ("more", "[Uu]nrecognized arguments: more"),
    ("--trainer.max_epochs x", "--trainer.max_epochs: .*PositiveInt.* x"),
    ("--trainer.max_epochs", "argument --trainer.max_epochs: expected one argument"),
    ("--trainer.seed -1", "--trainer.seed: .*NonNegativeInt.*-1"),
    ("--data.batch-size 0", "--data.batch_size: .*PositiveInt"),
    ("--data.batch_size null", "--data.batch_size: .*PositiveInt"),
    ("--optimizer.lr null", "--optimizer.lr: .*float.* None"),
    (f"--optimizer.lr {10**400}", "too large"),
    (f"--trainer.max_epochs {'9' * 5000}", "--trainer.max_epochs: "),
    ("--optimizer.lr !!python/object/apply:os.abort[]", "--optimizer.lr: .*float"),
    ("--model.hidden !!python/object/apply:os.abort[]", "--model.hidden: .*Sequence"),
    ("--optimizer.name sgd --optimizer.betas [0.9,0.99]", "--optimizer.betas: unknown key.*'sgd' takes lr, momentum"),
    ("--schedule.name warmup-cosin", "no schedule 'warmup-cosin'; did you mean 'warmup-cosine'?"),
]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        *((text, "", message) for text, message in BAD_YAML),
        *((f"{DIGITS}{text}\n", "", message) for text, message in BAD_FILES),
        *((DIGITS, words, message) for words, message in BAD_WORDS),
    ],
)
def test_bad_configuration(tmp_path, text, words, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        resolve(str(path), words.split())
    said = str(caught.value)
    assert "\n" not in said
    assert not re.search(r"<class|jsonargparse|NoneType", said)
    if not words and "too large" not in said:
        assert said.startswith(f"{path}: ")


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no recipe 'digit'; did you mean 'digits'\?"):
        resolve("digit")
    with pytest.raises(FileNotFoundError):
        resolve(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"binary.yaml: expected YAML, got a file that is not text"):
        resolve(str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize("section", NAMED)
def test_what_can_be_chosen_has_settings_that_yaml_can_hold(section):
    plain = {"data": "digits", "model": "mlp", "loss": "auto", "optimizer": "adamw", "schedule": "constant"}
    assert len(list(registry(section))) >= 5
    for name in registry(section):
        assert name == name.lower()
        parser = make_parser(plain | {section: name})
        for key, default in parser.get_defaults().items():
            values = default if isinstance(default, tuple) else (default,)
            assert all(value is None or type(value) in (bool, int, float, str) for value in values), key
        assert f"--{section}.name" in parser.format_help()


def test_help_shows_the_values_of_the_recipe():
    text = resolve("digits", ["--optimizer.name", "sgd", "--optimizer.lr", "0.25"]).help("bp x", "Explain.")
    assert text.startswith("usage: bp x\n\nExplain.")
    assert re.search(r"--optimizer.lr LR +\(type: float, default: 0.25\)", text)
    assert "--optimizer.momentum" in text and "--optimizer.betas" not in text and "groups" not in text
    assert "hidden+" not in text and "CONFIG" not in text  # what `resolve` does not take
