"""Configs: what a value may be, who asks, and what a mistake in a config file is answered with."""

import dataclasses
import math
import pathlib
import re

import jax
import pytest
from ml_collections import ConfigDict

from kdjax import config as configuration
from kdjax.comparison.compare import compare
from kdjax.config import RunOptions
from kdjax.experiment.train import train
from kdjax.planning.program import make_program
from kdjax.utils import config_file
from kdjax.utils.errors import UserError
from kdjax.utils.schema import LARGEST, choices_of, range_of, section_of

ROOT = pathlib.Path(__file__).resolve().parents[2]


def changed(key, value):
    config = configuration.default()
    with config.ignore_type(), config.unlocked():
        config.update_from_flattened_dict({key: value})
    return config


def fails(config, message):
    with pytest.raises(UserError, match=message) as raised:
        configuration.read(config)
    assert "\n" not in str(raised.value)


def leaves(section, prefix=""):
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def fields(kind=RunOptions, prefix=""):
    for field in dataclasses.fields(kind):
        if field.name == "stored":
            continue
        if inner := section_of(field.type):
            yield from fields(inner, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


NUMBERS = {key: range_of(field) for key, field in fields() if range_of(field)}
CHOICES = [key for key, field in fields() if choices_of(field)]
FINGERPRINT = "97b06ccbefd9"
# Regular expressions on the paths of parameters, alone or each with a number.
PATTERNS = ("optimizer.no_decay", "optimizer.rates", "teacher.ensemble")


def test_every_number_has_a_range_and_every_tuple():
    assert len(NUMBERS) == 49
    assert len(CHOICES) == 9
    found = {
        key
        for key, value in leaves(configuration.default())
        if isinstance(value, int | float | tuple) and not isinstance(value, bool)
    }
    assert found == {*NUMBERS, *PATTERNS}


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_out_of_its_range(key):
    default = dict(leaves(configuration.default()))[key]
    several = (lambda x: (x, x)) if isinstance(default, tuple) else (lambda x: x)
    wrong = [-2, None, "1"]
    wrong += [LARGEST + 1, 1.5, True] if NUMBERS[key].whole else [math.nan, math.inf, -math.inf]
    for value in wrong:
        fails(changed(key, several(value)), rf"config.{re.escape(key)} is .*; it must be \w+")


@pytest.mark.parametrize("key", CHOICES)
def test_a_name_that_there_is_not(key):
    fails(changed(key, "lion"), rf'config.{re.escape(key)} is "lion"; it must be \w+ or \w+')


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 2**31, r"config\.seed is 2147483648; it must be at most 2147483647"),
        ("optimizer.momentum", 2.0, r"momentum is 2\.0; it must be at least 0 and below 1"),
        ("optimizer.warmup_steps", 1001, r"is 1001; it must be at most config\.steps, 1000"),
        ("optimizer.nesterov", True, r"config\.optimizer\.nesterov is not known: there are: acc"),
        ("optimizer.learning_rat", 1.0, 'learning_rat is not known: did you mean "learning_rate"'),
        (
            "optimizer.schedule",
            "poli",
            'schedule names the unknown schedule "poli": did you mean "poly',
        ),
        (
            "optimizer.name",
            "optax:lio",
            'optimizer "optax:lio": optax has no "lio"; did you mean "lion',
        ),
        (
            "optimizer.name",
            "optax:__version__",
            '__version__", which cannot be called: .* is not a',
        ),
        ("optimizer.name", "optax:scale_by_adam", "which takes no learning_rate"),
        (
            "optimizer.options",
            ConfigDict({"b3": 0.9}),
            r"options\.b3 is no argument of sgd: there are",
        ),
        (
            "optimizer.schedule",
            "optax:linear_schedule",
            r"missing a required argument: 'end_value'; set it in config\.optimizer\.schedule_opt",
        ),
        ("optimizer.no_decay", ("(",), r'no_decay is "\(", not a regular expression'),
        ("optimizer.no_decay", (3,), "no_decay is 3; it must be like '', a text in quotes"),
        ("optimizer.rates", ("head",), r"rates holds 'head'; it must hold pairs, as \(\("),
        ("optimizer.rates", (("head", -1.0),), r"rates is -1\.0; it must be 0 or more"),
        ("student.name", "pspnet_r19", 'names the unknown network "pspnet_r19": did you mean'),
        ("student.name", "", 'config.student.name names the unknown network ""'),
        ("data.flip", 1, r"config\.data\.flip is 1; it must be like True, True or False"),
        ("data.crop_size", 96, r"config\.data\.crop_size is 96; it must be like \(96, 96\), a tup"),
        ("data.crop_size", (10**9, 96), r"crop_size is 1000000000; it must be from 1 to 16384"),
        (
            "data.test_groups",
            ConfigDict({"a": "("}),
            r'test_groups\.a is "\(", .*: missing \), unt',
        ),
        ("data.test_groups", ConfigDict({"a": 3}), r"test_groups\.a is 3; it must be like '', a t"),
        ("data.test_split", "val", r'data\.test_split is "val", as config\.data\.val_split is'),
        ("data.mixture", ConfigDict({"a": 3}), r"mixture\.a is 3; it must hold data_dir, labelled"),
        ("loss.class_weights", (0.0, 0), r"loss\.class_weights are all 0; one must be positive"),
        ("loss.hard_below", 0.7, r"loss\.hard_below changes nothing while hard_share is 1\.0; set"),
        (
            "compare.changes",
            ConfigDict({"weighted": {"loss": {"dice": 1.0}}}),
            r"compare\.changes\.weighted is no method of config\.compare\.methods",
        ),
        ("optimizer", 3, r"config\.optimizer is 3; it must hold accumulate, dec"),
        ("terms", 3, r"config\.terms is 3; it must be a dict of terms by name"),
        (
            "terms",
            ConfigDict({"mine": {"loss": "l3"}}),
            r'terms\.mine\.loss names the unknown loss "',
        ),
        (
            "compare.methods",
            ConfigDict({"cwd": {"cwd": {"loss": "cwd", "weight": -1.0}}}),
            r"config\.compare\.methods\.cwd\.cwd\.weight is -1\.0; it must be 0 or more",
        ),
        (
            "terms",
            ConfigDict({"mine": {"loss": "standardized_l2", "fitted_over": 10**6}}),
            r"config\.terms\.mine is 0 in its first 1000000 steps \(fitted_over\), and the run has",
        ),
        (
            "compare.methods",
            ConfigDict({"cwd": 1}),
            r"compare\.methods\.cwd is 1; it must be a dic",
        ),
    ],
)
def test_values_that_cannot_be(key, value, message):
    fails(changed(key, value), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer.name": "optax:adam", "compare.weight_decays": (0.1,)},
            r"config\.compare\.weight_decays would change nothing: config\.optimizer\.weight",
        ),
        (
            {
                "optimizer.schedule": "optax:constant_schedule",
                "optimizer.schedule_options": ConfigDict({"value": 0.1}),
                "compare.learning_rates": (0.1,),
            },
            r"config\.compare\.learning_rates would change nothing",
        ),
        (
            {"optimizer.name": "optax:yogi", "optimizer.decay_norm_and_bias": False},
            None,  # nothing decays
        ),
        (
            {"optimizer.name": "test_config:unmasked", "optimizer.no_decay": ("bias",)},
            r"optimizer\.no_decay keeps .* decaying, for which test_config:unmasked takes no mask",
        ),
    ],
)
def test_what_an_optimizer_would_not_read(changes, message):
    config = configuration.default()
    with config.ignore_type(), config.unlocked():
        config.update_from_flattened_dict(changes)
    if message:
        fails(config, message)
    else:
        configuration.read(config)


def unmasked(learning_rate, weight_decay):
    raise AssertionError("a validation calls no factory")


def test_class_weights_come_from_one_place():
    config = changed("loss.class_weights", (1.0, 2.0))
    configuration.read(config)
    config.loss.class_weighting = "median_frequency"
    fails(config, r"class_weights are given, and class_weighting is median_frequency; set one of")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"dise": 1.0}}, r'changes\.mine\.loss\.dise is not known: did you mean "dice"'),
        ({"loss": {"dice": -1.0}}, r"changes\.mine\.loss\.dice is -1\.0; it must be 0 or more"),
        ({"loss": {"dice": "much"}}, r"changes\.mine\.loss\.dice "),
        ({"optimizer": {"name": "adamw"}}, r"changes\.mine\.optimizer cannot be changed; give"),
        ({"loss": 3}, r"changes\.mine\.loss cannot be changed; give"),
        (3, r"changes\.mine is 3; give"),
    ],
)
def test_what_a_method_may_not_change(changes, message):
    config = changed("compare.methods", ConfigDict({"mine": {}}))
    with config.unlocked():
        config.compare.changes = ConfigDict({"mine": changes})
    fails(config, message)


def test_new_keys_leave_published_fingerprints_alone():
    """That of the default config was the same before the options for rare classes."""
    config = configuration.default()
    assert configuration.read(config).fingerprint == FINGERPRINT
    config.loss.dice = 1.0
    assert configuration.read(config).fingerprint != FINGERPRINT


def test_sections_that_are_missing():
    config = configuration.default()
    with config.unlocked():
        del config.optimizer
    fails(config, r"config\.optimizer is missing; begin with kdjax\.default_config\(\)")
    fails(ConfigDict({"steps": 3}), r"config\.boundaries is missing")
    fails({"steps": 3}, "config is of type dict; it must be as kdjax")


def test_who_begins_the_work_asks_first(tmp_path):
    """Whatever way a config came, and before anything is claimed or written."""
    config = changed("optimizer.name", "lion")
    workdir = tmp_path / "run"
    begin = {
        "train": lambda: train(config, str(workdir)),
        "compare": lambda: compare(config, workdir),
        "plan": lambda: make_program(config, jax.devices(), num_classes=3, batch_size=16),
    }
    for ask in begin.values():
        with pytest.raises(UserError, match='name names the unknown optimizer "lion": there'):
            ask()
    config = configuration.default()
    with pytest.raises(UserError, match="--seeds is 4294967296; it must be at most"):
        compare(config, workdir, seeds=(0, 2**32))
    assert not workdir.exists()


def test_groups_of_no_test_split_are_refused():
    config = changed("data.test_groups", ConfigDict({"night": "^night"}))
    said = r"config\.data\.test_groups are parts of config\.data\.test_split, which is empty: name"
    with pytest.raises(UserError, match=said):
        configuration.read(config)
    config.data.test_split = "test"
    assert configuration.read(config).data.test_split == "test"


def test_options_and_patterns_are_stored_as_they_are():
    config = configuration.default()
    config.optimizer.name = "optax:lion"
    config.optimizer.options = {"b1": 0.95, "mu_dtype": None}
    config.optimizer.rates = (("/head/", 10.0), (r"stage[12]/.*kernel$", 0))
    configuration.read(config)
    again = configuration.from_json(configuration.to_json(config))
    configuration.read(again)
    assert again.optimizer.to_dict() == config.optimizer.to_dict()


# What is wrong in a config file, its line counted from `def get_config`, and what is said of it.
FILES = {
    "syntax": ("    return (", 2, r"'\(' was never closed: return \("),
    "exception": ("    return 1 / 0", 2, "ZeroDivisionError: division by zero"),
    "exit": ("    raise SystemExit(0)", 2, "SystemExit: 0"),
    "name": ("    return cofnig", 2, "NameError: name 'cofnig' is not defined"),
    "type": (
        "    config.steps = 12.5\n    return config",
        2,
        "steps is 12.5; it must be a whole nu",
    ),
    "section_type": (
        "    config.data = 3\n    return config",
        2,
        "data is 3; it must be a section",
    ),
    "unknown": (
        "    config.optimizer.momentun = 1.0\n    return config",
        2,
        r'there is no key "momentun": did you mean "momentum"\?',
    ),
    "locked": (
        "    config.terms.cwd = {}\n    return config",
        2,
        r'there is no key "cwd": names of your own .* "with config\.unlocked\(\):"',
    ),
    "user_error": (
        "    configuration.term('cwdd')\n    return config",
        2,
        'unknown loss "cwdd": did you mean "cwd"',
    ),
}


def write(path, body, definition="def get_config():"):
    head = "from kdjax import config as configuration\n\nconfig = configuration.default()\n"
    path.write_text(f"{head}\n{definition}\n{body}\n")
    return 5  # the line of the definition


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_a_config_file_names_its_line(name, tmp_path):
    body, line, message = FILES[name]
    path = tmp_path / "mine.py"
    first = write(path, body)
    with pytest.raises(UserError) as raised:
        config_file.read(str(path))
    said = rf"{re.escape(str(path))}, line {first + line - 1}: .*{message}"
    assert re.match(said, str(raised.value)), raised.value


def test_the_argument_of_a_config_file(tmp_path):
    path = tmp_path / "mine.py"
    write(path, "    config.steps = int(steps)\n    return config", "def get_config(steps):")
    assert config_file.read(f"{path}:7").steps == 7
    with pytest.raises(
        UserError, match=r"mine\.py: get_config\(steps\): .*--config .*mine\.py:steps$"
    ):
        config_file.read(str(path))
    write(path, "    return config")
    with pytest.raises(UserError, match=r'mine\.py: get_config\(\): .*; leave out ":7"'):
        config_file.read(f"{path}:7")


def test_an_error_of_the_files_own_keeps_the_files_frames_alone(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import json\n\ndef steps():\n    return json.loads('{')\n\ndef get_config():\n"
        "    return steps()\n"
    )
    with pytest.raises(UserError) as raised:
        config_file.read(str(path))
    said = f"{path}, line 4: JSONDecodeError: Expecting property name"
    assert str(raised.value).startswith(said)
    assert str(raised.value).endswith(" (line 7 in get_config, line 4 in steps)")
    assert "json/" not in str(raised.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="this is a folder; name a config file"):
        config_file.read(str(tmp_path))
    with pytest.raises(UserError, match=r"none\.py: no such config file"):
        config_file.read(str(tmp_path / "none.py"))
    for body, found in (("    config.steps = 3", "nothing"), ("    return {}", "a dict")):
        write(tmp_path / "returns.py", body)
        with pytest.raises(UserError, match=rf"get_config\(\) returns {found}; end it in"):
            config_file.read(str(tmp_path / "returns.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UserError, match=r"empty\.py: defines no get_config\(\)"):
        config_file.read(str(tmp_path / "empty.py"))
    (tmp_path / "latin.py").write_bytes("a = 'gr\xfcn'\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.py.*: .*utf-8"):
        config_file.read(str(tmp_path / "latin.py"))


@pytest.mark.parametrize("path", ["quickstart.py", "configs/quickstart.py"])
def test_a_config_of_kdjaxs_own_is_found_from_any_folder(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    assert config_file.find(path) == str(ROOT / "configs" / "quickstart.py")
    assert config_file.read(path).compare.methods
    # A file that is there goes first,
    (tmp_path / path).parent.mkdir(exist_ok=True)
    write(tmp_path / path, "    config.steps = 7\n    return config")
    assert config_file.find(path) == path
    # and one of another folder is nobody else's.
    with pytest.raises(UserError, match=r"no such config file; did you mean kdjax's \"quickstart"):
        config_file.find("mine/quickstart.py")
    with pytest.raises(UserError, match=r"no such config file; kdjax's own lie in .*configs$"):
        config_file.find("xyz")
    # What another set's is called is no recipe of a set that has none by that name.
    with pytest.raises(UserError, match="no such config file; kdjax's own lie in "):
        config_file.find("configs/cityscapes_pspnet_r18.py")
