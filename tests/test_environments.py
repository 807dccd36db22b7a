"""Every registered environment keeps Gymnasium's and Stable-Baselines3's contracts."""

import copy
import pickle
import re
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as check_with_gymnasium
from stable_baselines3.common.env_checker import check_env as check_with_sb3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

import haq_env
from haq_env import make_task
from haq_env.env import QuantizationEnv, action_to_bits
from haq_env.errors import InputError
from haq_env.policy import ACTIVATION, WEIGHT

IDS = [
    id
    for id, spec in gym.registry.items()
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("haq_env")
]
DISCRETE = [id for id in IDS if "Discrete" in id]
RESIDUAL = [id for id in IDS if "Residual" in id]
CONTINUOUS = [id for id in IDS if id not in (*DISCRETE, *RESIDUAL)]
CHEAP = {"evaluator": "ptq_bn"}  # for promises that have nothing to do with finetuning


def play(env: gym.Env, seed: int) -> list[tuple]:
    """One episode of random actions, as bytes and numbers that can be compared exactly."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    steps = [(observation.tobytes(), repr(sorted(info.items())))]
    while True:
        if isinstance(env.action_space, gym.spaces.Discrete):
            action = rng.choice(np.flatnonzero(env.unwrapped.action_masks()))
        else:
            action = rng.uniform(-1, 1, 1).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        info = {key: value for key, value in info.items() if key not in ("seconds", "cache_hit")}
        steps.append((observation.tobytes(), reward, terminated, truncated, repr(info)))
        if terminated or truncated:
            return steps


def test_the_five_problems_are_registered_in_three_variants():
    names = {"BISMO-Edge", "BISMO-Cloud", "BitFusion", "BitFusion-Energy", "ModelSize"}
    assert {f"HAQ-{name}-v0" for name in names} == set(CONTINUOUS)
    assert {f"HAQ-{name}-Discrete-v0" for name in names} == set(DISCRETE)
    assert {f"HAQ-{name}-Residual-v0" for name in names} == set(RESIDUAL)


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_both_checkers_pass_without_a_warning(id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_with_gymnasium(gym.make(id, **CHEAP).unwrapped)
        check_with_sb3(gym.make(id, **CHEAP).unwrapped)


@pytest.mark.slow
@pytest.mark.parametrize("id", ["HAQ-BISMO-Edge-v0", "HAQ-ModelSize-v0"])
def test_the_default_tier_passes_both_checkers_too(id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_with_gymnasium(gym.make(id).unwrapped, skip_render_check=True)
        check_with_sb3(gym.make(id).unwrapped)


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_two_environments_with_one_seed_agree_bit_for_bit_over_two_episodes(id):
    first, second = gym.make(id), gym.make(id)
    for seed in (0, 1):
        assert play(first, seed) == play(second, seed)


@pytest.mark.parametrize("id", IDS)
def test_specs_survive_json_pickle_and_deepcopy(id):
    env = gym.make(id, **CHEAP)
    assert gym.envs.registration.EnvSpec.from_json(env.spec.to_json()) == env.spec
    env.reset(seed=0)
    action = 3 if "Discrete" in id else np.array([0.3], np.float32)
    env.step(action)
    for other in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        a, b = env.unwrapped, other.unwrapped
        assert (a._bits == b._bits).all()
        left, right = copy.deepcopy(env).step(action), other.step(action)
        assert left[0].tobytes() == right[0].tobytes()
        assert left[1:] == right[1:]


def printed_by(*lines: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_module_prefix_makes_the_import_unnecessary():
    assert (
        printed_by(
            "import gymnasium",
            "env = gymnasium.make('haq_env:HAQ-BISMO-Edge-v0')",
            "print(env.unwrapped.task.budget.limit > 0)",
        )
        == "True"
    )


def test_importing_the_package_loads_neither_torch_nor_scipy():
    assert (
        printed_by(
            "import sys, haq_env",
            "heavy = ('torch', 'scipy', 'sklearn', 'stable_baselines3', 'matplotlib')",
            "print([name for name in heavy if name in sys.modules])",
        )
        == "[]"
    )


def test_making_the_default_environment_loads_no_torch():
    assert (
        printed_by(
            "import sys, gymnasium, haq_env",
            "gymnasium.make('HAQ-BISMO-Edge-v0').reset()",
            "print('torch' in sys.modules)",
        )
        == "False"
    )


@pytest.mark.slow
def test_vector_environments_of_both_libraries_work():
    gymnasium_env = gym.make_vec("haq_env:HAQ-BISMO-Edge-v0", 2, "async", vector_kwargs={}, **CHEAP)
    sb3_env = make_vec_env(
        "haq_env:HAQ-BISMO-Edge-v0", 2, vec_env_cls=SubprocVecEnv, env_kwargs=CHEAP, seed=0
    )
    gymnasium_env.reset(seed=0)
    sb3_env.reset()
    steps = len(gym.make("HAQ-BISMO-Edge-v0").unwrapped.task.space.steps)
    for _ in range(steps):
        _, rewards, terminated, _, infos = gymnasium_env.step(np.zeros((2, 1), np.float32))
        _, sb3_rewards, dones, sb3_infos = sb3_env.step(np.zeros((2, 1), np.float32))
    assert terminated.all()
    assert dones.all()
    assert rewards[0] == rewards[1] == pytest.approx(sb3_rewards[0])
    assert infos["accuracy"][0] == sb3_infos[0]["accuracy"]
    gymnasium_env.close()
    sb3_env.close()


@pytest.mark.parametrize("id", IDS)
def test_the_observation_is_inside_its_space_for_every_layer_and_extreme_action(id):
    env = gym.make(id, **CHEAP).unwrapped
    last = env.action_space.n - 1 if "Discrete" in id else None
    for extreme in (0, 1):
        action = extreme * last if last is not None else np.array([2 * extreme - 1], np.float32)
        observation, _ = env.reset()
        for _ in range(len(env.task.space.steps) - 1):
            assert env.observation_space.contains(observation)
            observation, reward, terminated, _, _ = env.step(action)
            assert reward == 0
            assert not terminated


def test_an_episode_decides_weights_then_activations_of_every_layer_but_first_and_last():
    env = gym.make("HAQ-BISMO-Edge-v0", **CHEAP).unwrapped
    _, info = env.reset()
    seen = []
    for _ in range(len(env.task.space.steps)):
        seen.append((info["layer"], info["side"]))
        _, _, _, _, info = env.step(np.zeros(1, np.float32))
    names = env.task.layers.names[1:-1]
    assert seen == [(name, side) for name in names for side in ("weights", "activations")]


def test_which_layers_keep_8_bits_is_the_users_choice():
    free = make_task(pinned=())
    named = make_task(pinned=("stem.conv", "classifier", "blocks.0.depthwise.conv"))
    assert [len(task.space.steps) for task in (free, make_task(), named)] == [56, 52, 50]
    assert (free.uniform() == [3, 2]).all()
    assert (named.uniform()[[0, 1, -1]] == 8).all()
    assert free.settings["pinned"] == []
    assert "pinned" not in make_task().settings


def test_the_model_size_problem_has_one_step_for_each_layer_and_leaves_activations_alone():
    env = gym.make("HAQ-ModelSize-v0", **CHEAP).unwrapped
    env.reset()
    for _ in range(len(env.task.layers) - 2):
        _, _, terminated, _, info = env.step(np.array([-1.0], np.float32))
    assert terminated
    assert all(a_bits == 8 for _, a_bits in info["policy"])


def test_actions_are_mapped_to_bins_of_equal_width():
    actions = np.linspace(-1, 1, 70_001)
    bits = np.array([action_to_bits(a, 2, 8) for a in actions])
    assert (np.diff(bits) >= 0).all()
    counts = np.bincount(bits)[2:]
    assert len(counts) == 7
    assert counts.max() - counts.min() <= 2
    for low, high in ((1, 8), (1, 7), (3, 4)):
        assert action_to_bits(-1, low, high) == action_to_bits(-9, low, high) == low
        assert action_to_bits(1, low, high) == action_to_bits(9, low, high) == high


def test_the_terminal_info_says_what_was_asked_and_what_was_done():
    env = gym.make("HAQ-BISMO-Edge-v0", **CHEAP).unwrapped
    env.reset()
    for _ in env.task.space.steps:
        observation, reward, terminated, truncated, info = env.step(np.array([1.0], np.float32))
    assert terminated is True
    assert truncated is False
    policy, requested = np.array(info["policy"]), np.array(info["policy_requested"])
    assert (requested == 8).all()
    assert (policy == env.task.project(requested)).all()
    assert info["cost"] == env.task.cost(policy) <= info["budget"] * (1 + 1e-12)
    assert info["cost_ratio"] == pytest.approx(info["cost"] / env.task.budget.reference)
    assert reward == pytest.approx(0.1 * (info["accuracy"] - info["float_accuracy"]))
    assert env.observation_space.contains(observation)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(1, np.float32))


@pytest.mark.parametrize("id", DISCRETE)
def test_masked_walks_are_inside_the_budget_without_projection(id):
    env = gym.make(id, **CHEAP, fill_up=False).unwrapped
    rng = np.random.default_rng(0)
    env.reset()
    terminated = False
    while not terminated:
        mask = env.action_masks()
        assert mask.shape == (env.action_space.n,)
        _, _, terminated, _, info = env.step(rng.choice(np.flatnonzero(mask)))
    assert info["policy"] == info["policy_requested"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "mobilenet_v9"}, "unknown network 'mobilenet_v9'. Did you mean"),
        ({"network": "resnet50"}, "no trained weights of network 'resnet50' for data set 'digits'"),
        ({"hardware": "bismo-egde"}, "Did you mean 'bismo-edge'"),
        ({"hardware": "nowhere.toml"}, "nowhere.toml"),
        ({"dataset": "imagnet"}, "unknown data set 'imagnet'"),
        ({"metric": "speed"}, "unknown metric 'speed'"),
        ({"metric": "energy"}, "BISMO has no published energy model"),
        ({"bits": (0, 8)}, "bits must lie within 1 to 8"),
        ({"bits": (6, 4)}, "the smallest width 6 is above the largest 4"),
        ({"budget": 1.5}, "budget must be a share in (0, 1]"),
        ({"budget": "4 bits"}, "or the name of a uniform policy such as 'w4a4'"),
        ({"budget": 0.01}, "every policy takes at least"),
        ({"evaluator": "fine-tune"}, "Did you mean 'finetune'"),
        ({"budgt": 0.5}, "unknown argument 'budgt'. Did you mean 'budget'"),
        ({"render": "ansi"}, "unknown argument 'render'. Did you mean 'render_mode'"),
        ({"quantizer": "pact"}, "unknown quantizer 'pact'"),
        ({"clip": "kl"}, "unknown clip rule 'kl'"),
        ({"fill_up": "no"}, "fill_up must be True or False, not 'no'"),
        ({"pinned": ("classifier.2",)}, "unknown layer 'classifier.2'"),
        ({"pinned": (30,)}, "there is no layer 30 among 28"),
        ({"pinned": "features"}, "pinned must be a sequence of layers, not 'features'"),
        ({"actions": "binary"}, "actions must be 'continuous' or 'discrete'"),
        ({"checkpoint": "gone.safetensors"}, "gone.safetensors"),
    ],
)
def test_bad_arguments_give_one_clear_error(settings, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        gym.make("HAQ-BISMO-Edge-v0", **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.array([np.nan], np.float32), "must be a number in [-1, 1], not nan"),
        (np.array([np.inf], np.float32), "must be a number in [-1, 1], not inf"),
        (np.zeros(2, np.float32), "must have the shape [1], not [2]"),
        (0.5, "must have the shape [1], not []"),
    ],
)
def test_bad_actions_give_one_clear_error_and_change_nothing(action, message):
    env = QuantizationEnv(hardware="bismo-edge", **CHEAP)
    before, _ = env.reset()
    with pytest.raises(InputError, match=re.escape(message)):
        env.step(action)
    assert (env._observe() == before).all()


@pytest.mark.parametrize("action", [-1, 7, 2.5])
def test_bad_discrete_actions_are_refused(action):
    env = QuantizationEnv(actions="discrete", **CHEAP)
    env.reset()
    with pytest.raises(InputError, match="action must be an integer 0 to 6"):
        env.step(action)


def test_a_task_and_settings_together_are_refused():
    task = haq_env.make_task(**CHEAP)
    assert QuantizationEnv(task).task is task
    with pytest.raises(InputError, match="not both"):
        QuantizationEnv(task, budget=0.5)


def test_a_task_is_printed_without_its_tables():
    text = repr(haq_env.make_task(**CHEAP))
    assert "bismo-edge" in text
    assert "limit=" in text
    assert "array(" not in text


@pytest.mark.parametrize(
    ("id", "call"),
    [
        ("HAQ-BISMO-Edge-v0", r"QuantizationEnv\(task\)"),
        ("HAQ-BitFusion-Residual-v0", r"ResidualEnv\(task\)"),
    ],
)
def test_a_task_in_gym_make_is_told_where_it_goes(id, call):
    with pytest.raises(InputError, match=call):
        gym.make(id, task=haq_env.make_task(**CHEAP))


def test_a_task_goes_with_actions_scales_and_a_way_to_draw():
    task = haq_env.make_task(**CHEAP)
    scales = QuantizationEnv(task).scales
    env = QuantizationEnv(task, actions="discrete", scales=scales, render_mode="ansi")
    env.reset()
    assert env.render().startswith("w 8.")


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_every_state_of_an_episode_can_be_drawn(mode):
    env = gym.make("HAQ-BISMO-Edge-v0", render_mode=mode, **CHEAP)
    env.reset()
    pictures = [env.render()]
    for _ in range(len(env.unwrapped.task.space.steps)):
        env.step(np.array([-0.5], np.float32))
        pictures.append(env.render())
    if mode == "ansi":
        assert len(set(pictures)) > len(pictures) // 2
    else:
        assert {p.shape for p in pictures} == {pictures[0].shape}
        assert pictures[0].dtype == np.uint8
        assert (pictures[0] != pictures[20]).any()


def test_the_class_docstring_is_a_documentation_page_that_fits_the_spaces():
    page = QuantizationEnv.__doc__
    headings = re.findall(r"## (.+)", page)
    wanted = ["Description", "Action Space", "Observation Space", "Rewards", "Starting State",
              "Episode End", "Arguments", "Version History"]  # fmt: skip
    assert [heading for heading in headings if heading in wanted] == wanted
    env = QuantizationEnv(**CHEAP)

    def rows(heading):
        part = page.split(f"## {heading}")[1].split("## ")[0]
        return re.findall(r"^ *\| (?:`(\w+)`|\d+) \|", part, flags=re.M)

    assert len(rows("Action Space")) == env.action_space.shape[0]
    assert len(rows("Observation Space")) == env.observation_space.shape[0]
    import inspect

    from haq_env.make import make_task

    own = {"task", "actions", "scales", "render_mode"}
    arguments = {*inspect.signature(make_task).parameters, *own}
    assert set(rows("Arguments")) == arguments


def test_weights_and_activations_stay_on_their_sides():
    env = QuantizationEnv(**CHEAP)
    env.reset()
    env.step(np.array([-1.0], np.float32))
    env.step(np.array([1.0], np.float32))
    assert env._bits[1, WEIGHT] == 2
    assert env._bits[1, ACTIVATION] == 8


def test_a_users_toml_hardware_goes_through_the_environment(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('model = "bismo-edge"\nname = "mine"\nclock_hz = 100e6\n')
    mine = QuantizationEnv(hardware=path, **CHEAP).task
    theirs = QuantizationEnv(hardware="bismo-edge", **CHEAP).task
    assert mine.settings["hardware"] == "mine"
    assert mine.cost(mine.uniform()) == pytest.approx(2 * theirs.cost(theirs.uniform()))


def test_a_users_class_with_one_method_is_a_hardware_model():
    from haq_env.cost import CostTable

    class Flat:
        def cost_table(self, layers):
            bits = np.arange(1, 9)
            grid = np.tile((bits[:, None] * bits).astype(float), (len(layers), 1, 1))
            return CostTable(layers.names, {"latency": grid}, "flat")

    task = QuantizationEnv(hardware=Flat(), budget=0.3, **CHEAP).task
    projected = task.project(task.space.highest)
    assert task.cost(projected) <= 0.3 * 64 * len(task.layers)


def test_the_bundled_layer_table_and_accuracy_are_those_of_the_bundled_network():
    from haq_env.networks import load_network
    from haq_env.networks.bundled import find_trained
    from haq_env.networks.checkpoint import load_checkpoint
    from haq_env.networks.trace import trace

    task = QuantizationEnv().task
    found = find_trained("mobilenet_v1", "digits")
    module = load_network("mobilenet_v1", **dict(found.build))
    about = load_checkpoint(found.checkpoint, module)
    assert trace(module, found.layers.input_shape, name="mobilenet_v1") == found.layers
    assert task.float_accuracy == about["accuracy"]["val"]
