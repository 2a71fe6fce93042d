"""Two processes with batches of B against one with 2 B: losses, gradients and the collectives (gloo)."""

from pathlib import Path

import pytest
import torch

from common import distributed
from models import ContrastiveEncoder
from models.transform_layers import Augmentation
from tests.processes import run_processes
from training.objectives import Batch, DistinctiveObjective, SemanticObjective

OBJECTIVES = {
    "semantic": SemanticObjective(Augmentation(), temperature=0.5),
    "distinctive": DistinctiveObjective(Augmentation(), temperature=0.5, shift="rotation", sim_lambda=0.7),
}
SHIFTS = {"semantic": 1, "distinctive": 4}
SIZE = 3  # images per process


class LinearEncoder(ContrastiveEncoder):
    """One linear layer as backbone: without BatchNorm a row's outputs do not depend on its batch."""

    feature_dim = 6

    def __init__(self, **settings):
        super().__init__(**settings)
        self.layer = torch.nn.Linear(48, 6)

    def penultimate(self, images):
        return self.layer(images.flatten(1))


def make_encoder(name):
    torch.manual_seed(0)
    return LinearEncoder(num_classes=3, shifts=SHIFTS[name], simclr_dim=5)


def make_batch():
    images = torch.rand(2 * SIZE, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.tensor([0, 1, 2, 2, 1, 0]), torch.arange(2 * SIZE) + 100, 1)


def learn(name, encoder, model, batch):
    """The loss's statistics and every gradient after one backward pass."""
    loss, stats = OBJECTIVES[name](model, batch)
    loss.backward()
    gradients = {key: p.grad for key, p in encoder.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **stats}, gradients


def work(words, rank, folder):
    """What each of the two processes does: everything is computed here and compared by the tests below."""
    found = compute(rank)
    threads = Path("/proc/self/task").glob("*/comm")
    found["threads"] = [path.read_text().strip() for path in threads]
    torch.save(found, Path(folder) / f"{rank}.pt")


def compute(rank):
    found = {}
    with distributed.process_group("cpu") as device:
        share = slice(rank * SIZE, (rank + 1) * SIZE)
        for name in OBJECTIVES:
            encoder, batch = make_encoder(name), make_batch()
            model = distributed.wrap(encoder, device)
            mine = Batch(*(part[share] for part in batch[:3]), batch.epoch)
            found[name] = learn(name, encoder, model, mine)
        found["mean"] = distributed.mean_over_processes({"b": 1.0 + rank, "a": 10.0 * rank}, device)
        grown = torch.full((2, 1), float(rank + 1), requires_grad=True)
        gathered = distributed.all_gather(grown, dim=1)
        (gathered * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
        found["gathered"], found["gathered_grad"] = gathered.detach(), grown.grad
    return found


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What both processes found, by rank."""
    folder = tmp_path_factory.mktemp("two")
    ended = run_processes(work, folder, str(folder))
    assert [process.status for process in ended] == [0, 0], [process.told for process in ended]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradients_of_two_processes_equal_those_of_one_with_both_batches(processes, name):
    encoder = make_encoder(name)
    _, expected = learn(name, encoder, encoder, make_batch())
    assert expected["layer.weight"].abs().max() > 1e-3
    for _, gradients in (found[name] for found in processes):
        assert set(gradients) == set(expected)
        for key, gradient in gradients.items():
            assert (gradient - expected[key]).abs().max() < 1e-6, key


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_losses_of_two_processes_equal_those_of_one_with_both_batches(processes, name):
    encoder = make_encoder(name)
    expected, _ = learn(name, encoder, encoder, make_batch())
    here, there = (found[name][0] for found in processes)
    assert set(here) == set(expected)
    # The similarity is that of the global batch at each process; the rest is each process's own share.
    for stats in (here, there):
        assert stats["loss_sim"].item() == pytest.approx(expected["loss_sim"].item(), abs=1e-6)
    for key, value in expected.items():
        assert ((here[key] + there[key]) / 2).item() == pytest.approx(value.item(), abs=1e-5), key


def test_mean_over_processes(processes):
    for found in processes:
        assert found["mean"] == {"a": 5.0, "b": 1.5}


def test_all_gather_concatenates_along_a_dimension_and_sums_gradients(processes):
    for rank, found in enumerate(processes):
        assert found["gathered"].tolist() == [[1.0, 2.0], [1.0, 2.0]]
        # Each process's loss has both columns, so a column's gradient arrives twice.
        assert found["gathered_grad"].tolist() == [[[2.0], [200.0]], [[20.0], [2000.0]]][rank]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in /proc")
def test_no_thread_of_the_group_is_left_for_the_end_of_the_interpreter(processes):
    for found in processes:
        assert found["threads"] and not any("gloo" in name for name in found["threads"]), found["threads"]
