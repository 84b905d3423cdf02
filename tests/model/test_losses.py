import pytest
import torch
import torch.nn.functional as F

from ingot.model.losses import IGNORED, cross_entropy, dpo_loss, row_logprobs


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    hidden = torch.randn(3, 11, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(29, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(29, (3, 11))
    targets[1, 4:] = IGNORED
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [None, 1, 5, 33, 100])
def test_chunked_cross_entropy_and_z_loss_are_the_plain_ones_in_value_and_gradients(inputs, chunk):
    hidden, weight, targets = inputs
    # Every position has a gradient of its own, as preference training gives it, and an ignored one too.
    upstream = torch.rand(targets.shape)
    logits = (hidden @ weight.T).float()
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    plain_log_z = torch.where(targets == IGNORED, 0.0, logits.logsumexp(dim=-1))
    nll, log_z = cross_entropy(hidden, weight, targets, chunk=chunk)
    assert nll.dtype == log_z.dtype == torch.float32
    assert (nll[targets == IGNORED] == 0).all()
    torch.testing.assert_close((nll, log_z), (plain, plain_log_z))

    def gradients(nll, log_z, z_loss):
        loss = ((nll + z_loss * log_z.square()) * upstream).sum()
        return torch.autograd.grad(loss, (hidden, weight), retain_graph=True)

    for z_loss in (0.0, 0.3):
        found, expected = gradients(nll, log_z, z_loss), gradients(plain, plain_log_z, z_loss)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_chunked_cross_entropy_takes_bf16_hidden_states_and_gives_fp32_weights_their_fp32_gradient(inputs):
    hidden, weight, targets = (inputs[0].bfloat16().detach(), inputs[1].float().detach(), inputs[2])
    hidden.requires_grad_()
    weight.requires_grad_()
    plain = torch.autograd.grad(cross_entropy(hidden, weight, targets)[0].sum(), (hidden, weight))
    chunked = torch.autograd.grad(cross_entropy(hidden, weight, targets, chunk=4)[0].sum(), (hidden, weight))
    assert [gradient.dtype for gradient in chunked] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(chunked, plain, rtol=0.02, atol=0.05)


def test_row_logprobs_sum_the_targets_that_count(inputs):
    hidden, weight, targets = inputs
    logprobs = F.log_softmax(hidden @ weight.T, dim=-1)
    expected = [logprobs[b, range(n), targets[b, :n]].sum() for b, n in enumerate((11, 4, 11))]
    sums, tokens = row_logprobs(cross_entropy(hidden, weight, targets)[0], targets)
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
