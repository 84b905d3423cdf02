"""Packed rows: several documents in one row give what each gives in a row of its own."""

import functools

import pytest
import torch

from ingot.model import IGNORED, Batch, Transformer, language_model_objective, parallelize
from ingot.model.attention import document_positions, document_starts

LENGTHS = [[1, 1, 9, 2, 3], [16], [7, 8, 1]]  # of the documents in each row of 16
OTHERS = [[16], [1] * 16, [15, 1]]


def pack(config, lengths=LENGTHS) -> Batch:
    """Each document's last target does not count: what follows it in the row is another document."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocabulary, (len(lengths), sum(lengths[0])), generator=generator)
    targets = torch.full_like(tokens, IGNORED)
    for row, documents in enumerate(lengths):
        for part in torch.arange(tokens.shape[1]).split(documents):
            targets[row, part[:-1]] = tokens[row, part[1:]]
    numbers = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
    return Batch(tokens, targets, documents_BT=torch.stack(numbers).int())


def pad(packed: Batch) -> tuple[Batch, torch.Tensor]:
    """A row for each document, and where the places of the packed rows, in order, lie among them."""
    starts = packed.documents_BT.diff(dim=1, prepend=torch.full((len(packed.documents_BT), 1), -1)) != 0
    places = starts.flatten().nonzero().flatten().tolist()
    lengths = torch.tensor([*places, packed.tokens_BT.numel()]).diff().tolist()
    tokens, targets = (
        torch.nn.utils.rnn.pad_sequence(rows.flatten().split(lengths), True, padding_value=value)
        for rows, value in ((packed.tokens_BT, 0), (packed.targets_BT, IGNORED))
    )
    real = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]
    return Batch(tokens, targets), real


def gradients(model: Transformer, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    language_model_objective(model, batch)[0].backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("lengths", [LENGTHS, OTHERS], ids=["some", "extreme"])
def test_packed_rows_give_the_logits_and_gradients_of_a_row_for_each_document(model, config, lengths):
    packed = pack(config, lengths)
    padded, real = pad(packed)
    logits = model(packed.tokens_BT, documents_BT=packed.documents_BT)
    torch.testing.assert_close(logits.flatten(0, 1), model(padded.tokens_BT)[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients(model, packed), gradients(model, padded), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"checkpointing": "full"}, 1e-5),
        ({"checkpointing": "full", "compile": "aot_eager"}, 1e-5),
        pytest.param({"compile": "inductor"}, 1e-5, marks=pytest.mark.long),
        ({"precision": "bf16"}, 3e-2),
    ],
    ids=str,
)
def test_however_the_model_is_run_packed_rows_give_what_the_rows_do(
    model, config, monkeypatch, options, tolerance
):
    """Each block in one graph where it is compiled; two batches of other documents."""
    if backend := options.get("compile"):  # the second, which is the default, takes minutes, cold
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
        options = {**options, "compile": True}
    other = parallelize(Transformer(config), **options)
    other.load_state_dict(model.state_dict())
    for lengths in (LENGTHS, OTHERS):
        packed = pack(config, lengths)
        expected, found = gradients(model, pad(packed)[0]), gradients(other, packed)
        for name, gradient in found.items():
            assert (gradient - expected[name]).norm() <= tolerance * expected[name].norm(), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("fp32", 1e-3)])
def test_packed_rows_on_a_gpu_give_the_gradients_of_a_row_for_each_document(
    model, config, precision, tolerance
):
    packed = pack(config)
    expected = gradients(model, pad(packed)[0])
    parallelize(model, precision=precision).cuda()
    tokens, targets, documents = (
        x.cuda() for x in (packed.tokens_BT, packed.targets_BT, packed.documents_BT)
    )
    found = gradients(model, Batch(tokens, targets, documents_BT=documents))
    for name, gradient in found.items():
        assert (gradient.cpu() - expected[name]).norm() <= tolerance * expected[name].norm(), name


def test_documents_begin_where_their_number_changes_and_where_a_row_does(config):
    documents_BT = pack(config).documents_BT
    assert document_starts(documents_BT).tolist() == [0, 1, 2, 11, 13, 16, 32, 39, 47, 48]
    lengths = [length for row in LENGTHS for length in row]
    assert document_positions(documents_BT).flatten().tolist() == [p for n in lengths for p in range(n)]


@pytest.mark.parametrize("changed", range(5))
def test_what_stands_in_one_document_changes_nothing_in_the_others(model, config, changed):
    packed = pack(config)
    own = packed.documents_BT[0] == changed
    tokens = packed.tokens_BT.clone()
    tokens[0, own] = (tokens[0, own] + 1) % config.vocabulary
    before, after = (model(rows, documents_BT=packed.documents_BT)[0] for rows in (packed.tokens_BT, tokens))
    assert torch.equal(before[~own], after[~own])
    assert not torch.isclose(before[own], after[own]).all(dim=-1).any()
