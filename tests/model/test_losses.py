import pytest
import torch
import torch.nn.functional as F

from ingot.model.losses import IGNORED, cross_entropy, dpo_loss, row_logprobs, summed_cross_entropy


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    hidden = torch.randn(3, 11, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(29, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(29, (3, 11))
    targets[1, 4:] = IGNORED
    return hidden, weight, targets


def plain(hidden, weight, targets):
    """Each target's loss and its softmax's log-denominator, 0 where none counts."""
    logits = (hidden @ weight.T).float()
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    return nll, torch.where(targets == IGNORED, 0.0, logits.logsumexp(dim=-1))


@pytest.mark.parametrize("chunk", [None, 1, 5, 33, 100])
def test_chunked_cross_entropy_is_the_plain_one_in_value_and_gradients(inputs, chunk):
    hidden, weight, targets = inputs
    # Every position has a gradient of its own, as preference training gives it, and an ignored one too.
    upstream = torch.rand(targets.shape)
    expected, _ = plain(*inputs)
    nll = cross_entropy(hidden, weight, targets, chunk=chunk)
    assert nll.dtype == torch.float32
    assert (nll[targets == IGNORED] == 0).all()
    torch.testing.assert_close(nll, expected)
    found = torch.autograd.grad((nll * upstream).sum(), (hidden, weight))
    wanted = torch.autograd.grad((expected * upstream).sum(), (hidden, weight))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, 1, 5, 33, 100])
def test_what_is_summed_at_once_is_the_sum_in_value_and_gradients(inputs, chunk, precision, z_loss):
    hidden, weight = (inputs[0].detach().to(precision), inputs[1].float().detach())
    targets = inputs[2]
    hidden.requires_grad_()
    weight.requires_grad_()
    nll_BT, log_z_BT = plain(hidden.float(), weight, targets)
    nll, penalty = nll_BT.sum(), z_loss * log_z_BT.square().sum()
    expected = torch.autograd.grad(3 * (nll + penalty), (hidden, weight))
    loose = precision == torch.bfloat16
    found = summed_cross_entropy(hidden, weight, targets, z_loss=z_loss, chunk=chunk)
    near = {"rtol": 0.02, "atol": 0.1} if loose else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, (nll + penalty, nll, penalty), **near)
    gradients = torch.autograd.grad(3 * found[0], (hidden, weight))
    assert [gradient.dtype for gradient in gradients] == [precision, torch.float32]
    torch.testing.assert_close(gradients, expected, **({"rtol": 0.02, "atol": 0.5} if loose else near))
    with torch.no_grad():
        alone = summed_cross_entropy(hidden, weight, targets, z_loss=z_loss, chunk=chunk)
    torch.testing.assert_close(alone, found)


def test_no_target_that_counts_costs_nothing_and_has_no_gradient(inputs):
    hidden, weight, targets = inputs
    nothing = torch.full_like(targets, IGNORED)
    total, *_ = summed_cross_entropy(hidden, weight, nothing)
    assert total == 0
    assert all((each == 0).all() for each in torch.autograd.grad(total, (hidden, weight)))


def test_chunked_cross_entropy_takes_bf16_hidden_states_and_gives_fp32_weights_their_fp32_gradient(inputs):
    hidden, weight, targets = (inputs[0].bfloat16().detach(), inputs[1].float().detach(), inputs[2])
    hidden.requires_grad_()
    weight.requires_grad_()
    whole = torch.autograd.grad(cross_entropy(hidden, weight, targets).sum(), (hidden, weight))
    chunked = torch.autograd.grad(cross_entropy(hidden, weight, targets, chunk=4).sum(), (hidden, weight))
    assert [gradient.dtype for gradient in chunked] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(chunked, whole, rtol=0.02, atol=0.05)


def test_row_logprobs_sum_the_targets_that_count(inputs):
    hidden, weight, targets = inputs
    logprobs = F.log_softmax(hidden @ weight.T, dim=-1)
    expected = [logprobs[b, range(n), targets[b, :n]].sum() for b, n in enumerate((11, 4, 11))]
    sums, tokens = row_logprobs(cross_entropy(hidden, weight, targets), targets)
    torch.testing.assert_close(sums.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert tokens.tolist() == [11, 4, 11]


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_loss_is_the_formula(average, smoothing):
    """Against the formula written out in fp64, a pair at a time, with answers of different lengths."""
    torch.manual_seed(0)
    pc, pr, rc, rr = (-100 * torch.rand(6, dtype=torch.float64) for _ in range(4))
    nc, nr = torch.randint(1, 50, (2, 6)).double()
    beta = 0.1
    losses, chosen, rejected = dpo_loss(pc, pr, rc, rr, beta, smoothing, nc, nr, average)
    for i in range(6):
        lengths = (nc[i], nr[i]) if average else (1, 1)
        a, b = (pc[i] - rc[i]) / lengths[0], (pr[i] - rr[i]) / lengths[1]
        wins = 1 / (1 + torch.exp(-beta * (a - b)))
        loss = -(1 - smoothing) * torch.log(wins) - smoothing * torch.log(1 - wins)
        torch.testing.assert_close(losses[i], loss)
        torch.testing.assert_close((chosen[i], rejected[i]), (beta * a, beta * b))


def test_dpo_loss_starts_at_ln_2_and_smoothing_stops_the_margin_from_growing_for_ever():
    zero = torch.zeros(1)
    assert dpo_loss(zero, zero, zero, zero, beta=0.1)[0].item() == pytest.approx(0.693147, abs=1e-6)
    # With a tenth of the labels doubted, the best margin is ln 9: the gradient vanishes there.
    margin = torch.tensor([2.1972246], requires_grad=True)
    dpo_loss(margin, zero, zero, zero, beta=1.0, label_smoothing=0.1)[0].sum().backward()
    assert margin.grad.item() == pytest.approx(0, abs=1e-6)
