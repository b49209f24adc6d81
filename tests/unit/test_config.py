"""One frozen configuration, one spelling of a change to it, and an identity that follows from its content."""

import ast
import hashlib
import inspect
import itertools
import json

import pytest
from pydantic import BaseModel, ValidationError

from hpcvision.config import (
    CAPS,
    MODEL_CONFIGS,
    AddNISTCNNConfig,
    AugmentConfig,
    BabyMobileNetConfig,
    ClassifyConfig,
    ConvNextUNetConfig,
    DataConfig,
    DiffuseConfig,
    EmaConfig,
    Frozen,
    OptimConfig,
    ResidualUNetConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
    apply,
    differences,
    flatten,
    parse,
    unparse,
)
from hpcvision.config.catalogue import load_job
from hpcvision.errors import CapExceeded, UserError

CLASSIFIER = RunConfig(name="one", model=BabyMobileNetConfig())
GENERATOR = RunConfig(name="two", model=ConvNextUNetConfig(), task=DiffuseConfig())
SYNTHETIC = RunConfig(name="three", model=BabyMobileNetConfig(), data=DataConfig(source="synthetic"))

# Where "another value" cannot be made by a rule: the alternatives of a choice, and values that must fit each other.
OTHER_VALUES = {
    "track": "auxiliary",
    "data.source": "synthetic",
    "data.augmentation.padding_mode": "reflection",
    "data.augmentation.blur_sigma": [0.2, 1.0],
    "data.augmentation.erasing_area": [0.03, 0.33],
    "data.train_on": "train+validation",
    "task.noise_schedule": "cosine",
    "task.prediction": "v",
    "task.min_snr_gamma": 5.0,
    "train.precision": "bf16",
    "train.batch_norm": "synchronized",
    "optim.optimizer": "sgd",
    "optim.muon_learning_rate": 0.05,
    "optim.betas": [0.8, 0.999],
    "optim.schedule": "cosine",
    "optim.gradient_clip": 1.0,
    "ema.headline": "ema",
    "sample.sampler": "ddpm",
    "task.timesteps": 900,
    "train.steps": 9999,
}
# These change only together with a data set of another shape, with the task, or with the sampler.
TIED = {
    "model.kind",
    "task.kind",
    "model.image_size",
    "model.num_classes",
    "sample.variance",
    "sample.guidance_interval",
}


def keys_of(config):
    return flatten(config.model_dump(mode="json"))


def another(key, value):
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"say in OTHER_VALUES what else {key} can be"
    return value + 1 if isinstance(value, int) else value / 2 + 0.01


def parts_of(model, seen):
    seen[model.__name__] = model
    for field in model.model_fields.values():
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and candidate.__name__ not in seen:
                parts_of(candidate, seen)
    return seen


def test_a_misspelt_key_is_answered_with_the_nearest_one():
    with pytest.raises(UserError) as caught:
        apply(CLASSIFIER, parse(["optim.learning_rat=1"]))
    assert str(caught.value) == "unknown key 'optim.learning_rat'; did you mean 'optim.learning_rate'?"


@pytest.mark.parametrize("key", keys_of(CLASSIFIER))
def test_every_key_with_its_last_letter_missing_leads_back_to_itself(key):
    with pytest.raises(UserError, match=f"did you mean '{key}'"):
        apply(CLASSIFIER, {key[:-1]: 1})


def test_a_key_under_the_wrong_parent_leads_to_the_right_one():
    with pytest.raises(UserError, match=r"unknown key 'zz\.steps'; did you mean 'train\.steps'"):
        apply(CLASSIFIER, {"zz.steps": 1})


@pytest.mark.parametrize("key", ["model", "train", "train.steps.more", "optim", ""])
def test_a_part_is_not_a_key(key):
    with pytest.raises(UserError, match="unknown key"):
        apply(CLASSIFIER, {key: 1})


@pytest.mark.parametrize(
    "assignment, words",
    [
        ("train.steps=many", "train.steps='many'"),
        ("train.steps=1.5", "train.steps=1.5"),
        ("train.steps=[1]", "train.steps=[1]"),
        ("train.steps=true", "train.steps=true"),
        ("optim.learning_rate=false", "optim.learning_rate=false"),
        ("optim.gradient_clip=true", "optim.gradient_clip=true"),
        ("optim.learning_rate=nan", "optim.learning_rate='nan'"),
        ("optim.learning_rate=Infinity", "optim.learning_rate=inf"),
        ("optim.learning_rate=-1", "optim.learning_rate=-1"),
        ("optim.betas=[0.9, 2]", "optim.betas.1=2"),
        ('optim.learning_rate="a\\nb"', "optim.learning_rate='a\\nb'"),
        ('optim.learning_rate={"a": 1}', "optim.learning_rate={'a': 1}"),
        ("model.dropout=2", "model.dropout=2"),
        ("data.source=cifar", "data.source='cifar'"),
        ("data.augmentation.blur_sigma=[3, 1]", "data.augmentation.blur_sigma=3.0,1.0"),
        ("model.kind=nope", "model.kind='nope'"),
        ("model.kind=[1]", "model.kind=[1]"),
        ("name=3", "name=3"),
    ],
)
def test_a_bad_value_is_named_with_its_key_in_one_short_line(assignment, words):
    with pytest.raises(UserError) as caught:
        apply(CLASSIFIER, parse([assignment]))
    message = str(caught.value)
    assert message.startswith(words)
    assert "\n" not in message
    assert len(message) < 160


@pytest.mark.parametrize("assignment", ["train.steps", "=3", ""])
def test_what_is_not_key_is_value_is_refused_with_an_example(assignment):
    with pytest.raises(UserError, match=r"write for example optim\.learning_rate=3e-4"):
        parse([assignment])


def test_numbers_are_taken_in_every_spelling_and_lead_to_one_run():
    spellings = ["0.0003", "3e-4", "3.0E-4"]
    runs = {apply(CLASSIFIER, parse([f"optim.learning_rate={text}"])).fingerprint for text in spellings}
    assert len(runs) == 1


@pytest.mark.parametrize(
    "text", ["x; rm -rf /", "$(id)", "`id`", "a\nb", "a\n", "'q'", '"', "..", "a/b", "", "-x", "ä"]
)
def test_a_name_that_a_shell_or_a_path_could_misread_is_refused(text):
    with pytest.raises(UserError, match="name="):
        apply(CLASSIFIER, {"name": text})
    with pytest.raises(UserError, match="name="):
        apply(CLASSIFIER, parse([f"name={text}"]))


@pytest.mark.parametrize("text", ["$(id)", "a b", "it's", 'say "x"', "line\nline", "a=b=c", "[1, 2", "\\", ""])
def test_text_that_is_not_json_stays_the_text_that_was_typed(text):
    assert parse([f"name={text}"]) == {"name": text}


@pytest.mark.parametrize(
    "value", ["plain", "5", "none", "None", "true", "a=b", '"', "", 5, 0.1, True, None, [0.8, "x"]]
)
def test_overrides_are_read_back_from_their_assignments(value):
    assert parse(unparse({"some.key": value})) == {"some.key": value}


def test_another_kind_brings_its_own_settings_with_their_defaults():
    config = apply(CLASSIFIER, parse(["model.kind=convnext_unet", "task.kind=diffuse"]))
    assert config.model == ConvNextUNetConfig()
    assert config.task == DiffuseConfig()


def test_settings_of_the_new_kind_may_stand_before_the_kind():
    config = apply(CLASSIFIER, parse(["task.timesteps=200", "model.kind=convnext_unet", "task.kind=diffuse"]))
    assert config.task == DiffuseConfig(timesteps=200)


def test_naming_the_kind_that_is_there_changes_nothing():
    config = apply(CLASSIFIER, {"model.dropout": 0.3})
    assert apply(config, {"model.kind": "baby_mobilenet"}) == config


def test_a_setting_of_another_kind_is_an_unknown_key():
    with pytest.raises(UserError, match=r"unknown key 'task\.timesteps'"):
        apply(CLASSIFIER, {"task.timesteps": 200})


def test_the_configuration_that_overrides_start_from_is_not_touched():
    before = CLASSIFIER.model_dump_json()
    apply(CLASSIFIER, {"train.steps": 7, "optim.betas": [0.1, 0.2]})
    assert CLASSIFIER.model_dump_json() == before


@pytest.mark.parametrize("path", [*(f for f in RunConfig.model_fields), "train.steps", "data.augmentation.flip"])
def test_no_field_can_be_assigned(path):
    *parents, leaf = path.split(".")
    owner = CLASSIFIER
    for parent in parents:
        owner = getattr(owner, parent)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(owner, leaf, getattr(owner, leaf))


@pytest.mark.parametrize("part", parts_of(RunConfig, {m.__name__: m for m in MODEL_CONFIGS}).values())
def test_every_setting_says_what_it_means(part):
    groups = {"model", "data", "task", "train", "optim", "ema", "sample", "cadence", "augmentation", "kind"}
    said = set()
    for owner in part.__mro__[: part.__mro__.index(Frozen)]:
        body = ast.parse(inspect.getsource(owner)).body[0].body
        said |= {
            field.target.id
            for field, below in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
        }
    assert set(part.model_fields) - said - groups == set()


def test_the_fingerprint_is_the_sha256_of_the_sorted_settings_without_name_and_cadence():
    settings = json.loads(GENERATOR.model_dump_json())
    del settings["name"], settings["cadence"]
    # Fields that came later, at the value that changes nothing.
    assert settings["train"].pop("batch_norm") == "per_process"
    assert settings["train"].pop("cuda_graph") is True
    assert settings["optim"].pop("muon_learning_rate") == 0.02
    assert settings["optim"].pop("muon_momentum") == 0.95
    assert settings["optim"].pop("muon_weight_decay") == 0.1
    assert settings["task"].pop("prediction") == "epsilon"
    assert settings["task"].pop("min_snr_gamma") is None
    assert settings["task"].pop("sigma_data") == 0.5
    assert settings["task"].pop("log_sigma_mean") == -1.2
    assert settings["task"].pop("log_sigma_deviation") == 1.2
    assert settings["sample"].pop("guidance_interval") is None
    assert settings["sample"].pop("eta") == 0
    assert settings["sample"].pop("variance") == "small"
    assert settings["data"]["augmentation"].pop("elastic_pixels") == 0
    assert GENERATOR.fingerprint == hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.parametrize("config", [CLASSIFIER, GENERATOR], ids=["classifier", "generator"])
def test_every_key_but_name_and_cadence_changes_the_fingerprint(config):
    unchanged, seen = [], {config.fingerprint}
    for key, value in keys_of(config).items():
        if key == "name" or key.startswith("cadence.") or key in TIED:
            continue
        changed = apply(config, {key: another(key, value)}).fingerprint
        if changed in seen:
            unchanged.append(key)
        seen.add(changed)
    assert unchanged == []


def test_the_variance_of_the_ancestral_sampler_changes_the_fingerprint():
    small = apply(GENERATOR, {"sample.sampler": "ddpm"})
    assert apply(small, {"sample.variance": "large"}).fingerprint != small.fingerprint


@pytest.mark.parametrize("key, value", [("image_size", 28), ("num_classes", 20)])
def test_the_shape_that_a_model_reads_changes_the_fingerprint(key, value):
    # Not through validation, which would ask for data of that shape.
    model = GENERATOR.model.model_copy(update={key: value})
    assert GENERATOR.model_copy(update={"model": model}).fingerprint != GENERATOR.fingerprint


def test_two_models_with_the_same_settings_have_different_fingerprints():
    same = {"image_size": 28, "num_classes": 20, "width": 0.5}
    models = (BabyMobileNetConfig(**same), AddNISTCNNConfig(**same))
    found = {RunConfig(name="x", model=model, data=DataConfig(source="addnist")).fingerprint for model in models}
    assert len(found) == 2


def test_name_and_cadence_do_not_change_the_fingerprint():
    keys = [key for key in keys_of(CLASSIFIER) if key.startswith("cadence.")]
    assert len(keys) == 3
    assert apply(CLASSIFIER, {"name": "other", **dict.fromkeys(keys, 7)}).fingerprint == CLASSIFIER.fingerprint


def test_the_fingerprint_of_a_known_run_is_the_one_of_its_archive():
    # Changing this number renames every run of the past.
    source, train = DataConfig(source="synthetic"), TrainConfig(precision="fp32")
    config = RunConfig(name="golden", model=BabyMobileNetConfig(), data=source, train=train)
    assert config.fingerprint == "320cc176316d"


def test_a_configuration_survives_json_unchanged():
    for name in ("addnist_cnn", "cifar100_ddpm_small"):
        config = load_job(name)
        assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("config", [CLASSIFIER, GENERATOR], ids=["classifier", "generator"])
def test_one_step_over_the_cap_is_refused_with_count_and_cap(config):
    cap = CAPS[config.task.kind].steps
    assert cap == {"classify": 10_000, "diffuse": 50_000}[config.task.kind]
    assert apply(config, {"train.steps": cap}).train.steps == cap
    with pytest.raises(CapExceeded, match=rf"train\.steps={cap + 1:,} is over the cap of {cap:,}.*train\.steps={cap},"):
        apply(config, {"train.steps": cap + 1})


def test_an_auxiliary_run_may_exceed_the_steps_and_says_so_in_its_name():
    config = RunConfig(name="teacher", track="auxiliary", model=BabyMobileNetConfig(), train=TrainConfig(steps=90_000))
    assert config.run_name == "teacher_auxiliary"
    assert config.folder_name == f"teacher_auxiliary-{config.fingerprint}"


def test_the_word_auxiliary_is_not_said_twice():
    config = RunConfig(name="auxiliary_teacher", track="auxiliary", model=BabyMobileNetConfig())
    assert config.run_name == "auxiliary_teacher"


def test_a_capped_run_keeps_its_name():
    assert CLASSIFIER.run_name == "one"


DIGITS = {"model": AddNISTCNNConfig(), "data": DataConfig(source="addnist", augmentation=AugmentConfig(flip=True))}
MIXED = ClassifyConfig(cutmix_probability=0.1)
DREAM = {"model": ConvNextUNetConfig(), "task": DiffuseConfig(timesteps=20)}


@pytest.mark.parametrize(
    "parts, words",
    [
        (DIGITS, "data.augmentation.flip=true would mirror digits"),
        (DIGITS | {"data": DataConfig(source="addnist"), "task": MIXED}, "task.cutmix_probability would mix digits"),
        (
            {"model": BabyMobileNetConfig(), "task": MIXED, "train": TrainConfig(global_batch_size=1)},
            "task.cutmix_probability needs train.global_batch_size of 2 or more",
        ),
        (
            {"model": ResidualUNetConfig(), "task": DiffuseConfig(), "optim": OptimConfig(optimizer="muon")},
            "optim.optimizer=muon is not for model.kind=residual_unet, only for addnist_cnn, baby_",
        ),
        (DIGITS | {"data": DataConfig(source="synthetic", augmentation=AugmentConfig(flip=True))}, "mirror digits"),
        ({"model": AddNISTCNNConfig()}, "data.source=cifar100 has 32x32 images of 100 classes, but the model reads 28"),
        ({"model": BabyMobileNetConfig(num_classes=20), "data": DataConfig(source="synthetic")}, "not (32, 20)"),
        (DREAM, "sample.steps=50 is more than task.timesteps=20"),
        (
            {"model": ConvNextUNetConfig(), "task": DiffuseConfig(), "sample": SampleConfig(sampler="heun", eta=0.5)},
            "sample.eta=0.5 is for sample.sampler=ddim, not heun",
        ),
        (
            {"model": ConvNextUNetConfig(), "task": DiffuseConfig(), "sample": SampleConfig(variance="large")},
            "sample.variance=large is for sample.sampler=ddpm, not ddim",
        ),
        (
            {
                "model": ResidualUNetConfig(),
                "task": DiffuseConfig(label_dropout=0),
                "sample": SampleConfig(guidance_scale=2),
            },
            "sample.guidance_scale=2.0 needs a model that has also seen images without their label; set task.label_",
        ),
        ({"model": ConvNextUNetConfig()}, "model.kind=convnext_unet cannot do task.kind=classify"),
        ({"model": BabyMobileNetConfig(), "task": DiffuseConfig()}, "cannot do task.kind=diffuse"),
        ({"model": BabyMobileNetConfig(), "ema": EmaConfig(beta=0, headline="ema")}, "needs ema.beta above 0"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_with_both_values(parts, words):
    with pytest.raises(ValidationError) as caught:
        RunConfig(name="x", **parts)
    assert words in str(caught.value)


def test_as_many_sampling_steps_as_timesteps_are_allowed():
    assert RunConfig(name="x", **DREAM, sample=SampleConfig(steps=20)).sample.steps == 20


def test_differences_lists_each_differing_key_with_both_values():
    assert differences(CLASSIFIER, apply(CLASSIFIER, {"train.steps": 7, "data.source": "synthetic"})) == {
        "data.source": ("cifar100", "synthetic"),
        "train.steps": (10_000, 7),
    }


def test_differences_of_equal_configurations_are_none():
    assert differences(CLASSIFIER, CLASSIFIER.model_copy(deep=True)) == {}


def test_a_key_that_only_one_kind_has_reads_none_on_the_other_side():
    found = differences(CLASSIFIER, GENERATOR)
    assert found["task.timesteps"] == (None, 1000)
    assert found["model.dropout"] == (0.1, None)
