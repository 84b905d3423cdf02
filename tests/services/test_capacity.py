"""What Ray's autoscaler reads of a RayCluster, and whether its groups hold what is asked of them."""

from __future__ import annotations

import pytest

from ingot.errors import IngotError
from ingot.pipelines.recipe import load_recipe
from ingot.services.capacity import Ask, Group, endpoint_asks, groups_of, misfits, recipe_asks
from ingot.services.serve.settings import ServeOptions

NAMED = {"name": "ingot", "namespace": "ingot"}


def group(**resources):
    return {
        "rayStartParams": {},
        "template": {"spec": {"containers": [{"resources": {"limits": resources}}]}},
    }


@pytest.fixture
def cluster():
    head = {**group(cpu="2", memory="4Gi"), "rayStartParams": {"num-cpus": "0"}}
    data = {**group(cpu="1500m"), "groupName": "data", "minReplicas": 0, "maxReplicas": 3}
    train = {**group(**{"cpu": "8", "nvidia.com/gpu": "2"}), "groupName": "train"}
    return {"headGroupSpec": head, "workerGroupSpecs": [data, {**train, "minReplicas": 1, "maxReplicas": 4}]}


def test_groups_are_read_by_rays_own_autoscaler(cluster):
    assert groups_of(NAMED, cluster) == [
        Group("headgroup", 1, cpus=0, gpus=0),
        Group("data", 3, cpus=2, gpus=0),  # it rounds up
        Group("train", 4, cpus=8, gpus=2),
    ]


def test_a_cluster_that_it_can_not_read_is_told(cluster):
    cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"] = {}
    with pytest.raises(IngotError, match=r"can't read it: ValueError: .* `CPU` resources for group data"):
        groups_of(NAMED, cluster)
    del cluster["workerGroupSpecs"][0]["maxReplicas"]
    with pytest.raises(IngotError, match="can't read it: KeyError: 'maxReplicas'"):
        groups_of(NAMED, cluster)


@pytest.mark.parametrize(
    ("ask", "fits"),
    [
        (Ask("x", 6, cpus=1), True),  # data: two a pod
        (Ask("x", 32, cpus=1), True),  # train
        (Ask("x", 33, cpus=1), False),
        (Ask("x", 8, cpus=4, gpus=1), True),
        (Ask("x", 9, cpus=4, gpus=1), False),
        (Ask("x", 8, cpus=5, gpus=1), False),  # one a pod: CPUs
        (Ask("x", 16, cpus=1, gpus=0.5), True),  # a GPU for two
        (Ask("x", 17, cpus=1, gpus=0.5), False),
        (Ask("x", 1, cpus=1, gpus=4), False),
        (Ask("x", 8, cpus=0, gpus=1), True),
    ],
)
def test_whole_pieces_fit_into_whole_pods_of_one_group(cluster, ask, fits):
    assert (misfits([ask], groups_of(NAMED, cluster)) == []) is fits


def test_a_recipe_asks_for_the_workers_that_the_stages_that_run_cannot_do_without(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: r\ncorpus: {sources: [{source: python-packages}]}\n"
        "pretrain: {steps: 1, learning_rate: 1, workers: 3, cpus_per_worker: 2, gpus_per_worker: 0.5}\n"
        "sft: {steps: 1, learning_rate: 1, workers: [2, 8]}\n"
    )
    recipe = load_recipe(path)
    data, pretrain, sft = Ask("corpus", 1, 1), Ask("pretrain.workers", 3, 2, 0.5), Ask("sft.workers", 2, 1, 0)
    assert recipe_asks(recipe) == [data, pretrain, sft]
    assert recipe_asks(recipe, until="tokens") == [data]
    options = ServeOptions(replicas=2, cpus=4, gpus=1)
    assert endpoint_asks(options) == [Ask("args.options.replicas", 2, 4, 1)]


def test_a_misfit_names_the_setting_and_what_there_is(cluster):
    [words] = misfits([Ask("pretrain.workers", 9, 8, 1)], groups_of(NAMED, cluster))
    assert words == (
        "pretrain.workers: 9 × 8 CPU and 1 GPU fit no group as far as it may grow (headgroup: 1 × 0 CPU; "
        "data: 3 × 2 CPU; train: 4 × 8 CPU and 2 GPU); ask for less, or raise maxReplicas or the resources "
        "of a group"
    )
