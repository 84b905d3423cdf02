"""The sections of a recipe: every setting of every stage, with its default, its bounds and its part.

A setting is either *what* (it changes what the stage makes, and is hashed into the artifact's fingerprint)
or *how* (workers, intervals, logging: it is not hashed). The stages before training make the same bytes
however they are run; a training's sums are rounded otherwise by other workers or micro batches, and nothing
else changes."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

if TYPE_CHECKING:
    from ingot.model.config import ModelConfig


def what(default: Any = ..., **bounds: Any) -> Any:
    """A setting that changes the artifact."""
    return Field(default, json_schema_extra={"part": "what"}, **bounds)


def how(default: Any = ..., **bounds: Any) -> Any:
    """A setting that does not."""
    return Field(default, json_schema_extra={"part": "how"}, **bounds)


MOST_SEED = 2**32 - 1
MOST_SNAPSHOT, MOST_SOURCES = 4095, 256  # what fits into a document's rank
MOST_BANDS = 64
BLANK_LINES = "blank-lines"
MOST_DIGITS = 9
LEAST_VOCABULARY, MOST_VOCABULARY = 300, 2**20  # `tokenizers` sets memory aside for as many as are asked for
Algorithm = Literal["bpe", "wordpiece"]
Format = Literal["auto", "text", "jsonl", "json", "parquet"]
Whitespace = Literal["words", "runs", "single"]
Workers = int | tuple[int, int]  # so many, or the least and the most


class Section(BaseModel):
    """A group of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, body: Any) -> Any:
        for name, value in body.items() if isinstance(body, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"{name}: {str(value).lower()} is no number and no word; write one")
        return body

    def what(self) -> dict[str, Any]:
        """The settings that change the artifact, nested sections included."""
        return {
            name: _what(getattr(self, name))
            for name, field in sorted(type(self).model_fields.items())
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra["part"] == "what"
        }


def _what(value: Any) -> Any:
    if isinstance(value, Section):
        return value.what()
    if isinstance(value, list | tuple):
        return [_what(item) for item in value]
    return value


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]


class PythonPackages(Section):
    """The interpreter's standard library without its tests, and the sources of installed packages."""

    source: Literal["python-packages"] = what()
    name: Name = what("python-packages")
    snapshot: int = what(0, ge=0, le=MOST_SNAPSHOT)
    packages: list[str] = how(["transformers", "torch", "numpy", "ray"])  # the files found are hashed


class Files(Section):
    """Text, JSON, JSON lines or Parquet, plain or compressed (gzip, zstd): below a folder or an S3 prefix, of
    a glob (`raw/**/*.jsonl`), or one file."""

    source: Literal["files"] = what()
    name: Name = what()
    snapshot: int = what(0, ge=0, le=MOST_SNAPSHOT)  # documents of an earlier one rather stay
    path: str = how()  # the files found are hashed by relative path, size and content
    hidden: bool = how(False)  # whether names that begin with a dot are read; the files found are hashed
    # The fields or columns that hold the text, and the address, where there is one. `a.b` is the field b of
    # a, unless there is a field of that very name.
    text: str = what("text")
    url: str = what("url")
    metadata: list[str] | None = what(None)  # the fields that are kept besides; by default all
    format: Format = what("auto")  # of all files; by default each file's name and content decide
    # Where a text file is cut into documents: blank-lines, a separator of your own ("\n---\n"), or the most
    # characters of a document. By default each text file is one document.
    split: int | str | None = what(None)
    most_unpacked: int = what(4_000_000_000, ge=1)  # bytes that a compressed file may hold
    most_ratio: int = what(200, ge=1)  # and so many times its own size, where that is over 16 MB

    @field_validator("split", mode="before")
    @classmethod
    def _cuts_somewhere(cls, value: Any) -> Any:
        number = type(value) is int and value >= 1
        separator = isinstance(value, str) and value != ""
        if value is not None and not number and not separator:
            raise ValueError(
                f"{value!r} does not say where to cut; write blank-lines, a separator in quotes, or the most "
                "characters of a document (1 or more)"
            )
        if separator and value != BLANK_LINES and re.sub(r"\W|_", "", value).lower() == "blanklines":
            raise ValueError(f"{value!r} would be a separator; write {BLANK_LINES}")
        return value

    @model_validator(mode="after")
    def _only_text_is_split(self) -> Files:
        if self.split is not None and self.format not in ("auto", "text"):
            raise ValueError(
                f"split cuts text files, and format: {self.format} has a document in each record; leave out "
                "one of the two"
            )
        return self


class Corpus(Section):
    """Raw sources → documents."""

    sources: list[Annotated[PythonPackages | Files, Field(discriminator="source")]] = what(min_length=1)
    unit_bytes: int = what(16_000_000, ge=1)  # input files are read in groups of about this size
    bad_records: Literal["fail", "quarantine"] = how("fail")

    @field_validator("sources")
    @classmethod
    def _sorted_by_name(cls, sources: list[Any]) -> list[Any]:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"two sources are named {twice[0]!r}; a name is part of a document's id, so give each its own"
            )
        # the order of listing must not matter
        return sorted(sources, key=lambda source: (source.snapshot, source.name))


class Dedup(Section):
    """Documents → which go, and the witness each goes for."""

    scope: Literal["all", "source"] = what("all")  # whether documents of different sources are compared
    url: bool = what(False)  # of documents with one address only the best stays
    priority: list[Name] = what([])  # sources, the one whose documents rather stay first
    quality: str | None = what(None)  # a number in a document's metadata; the higher rather stays
    # by exact similarity; by the signatures alone (dedup.verify says what that gives up); or all that buckets
    # chain together is one (dedup.components)
    decide: Literal["jaccard", "signature", "components"] = what("jaccard")
    takedown: list[str] = what([])  # ids and addresses of documents that are to be nowhere
    # Texts that differ in the normalisation form of Unicode, or in the case of letters beyond ASCII, are
    # compared as equal; what is kept is the text as it was.
    normalize: Literal["none", "nfc", "nfkc"] = what("none")
    casefold: bool = what(False)
    ngram: int = what(5, ge=1, le=1000)  # words in a shingle
    permutations: int = what(128, ge=16, le=1024)
    bands: int | None = what(None, ge=1, le=MOST_BANDS)  # of the signature; by default what threshold asks
    rows: int | None = what(None, ge=1, le=1024)  # of each band
    threshold: float = what(0.8)  # exact Jaccard similarity of the shingle sets
    seed: int = what(1, ge=0, le=MOST_SEED)
    partitions: int | None = what(None, ge=1)  # of each exchange; by default as the size of the corpus asks

    @field_validator("takedown")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        return sorted({name.strip() for name in names} - {""})

    @model_validator(mode="after")
    def _bands_fit(self) -> Dedup:
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"threshold {self.threshold:g} is no similarity between 0 and 1, both excluded; nearest: "
                f"{0.01 if self.threshold <= 0 else 0.99}"
            )
        if len(self.priority) >= MOST_SOURCES:
            raise ValueError(f"priority names {len(self.priority)} sources; at most {MOST_SOURCES - 1}")
        if (self.bands is None) != (self.rows is None):
            given, other = ("bands", "rows") if self.rows is None else ("rows", "bands")
            rest = max(1, self.permutations // getattr(self, given))
            raise ValueError(f"{given} without {other}; add {other}: {rest}, or leave out both")
        if self.bands and self.rows and self.bands * self.rows != self.permutations:
            product = self.bands * self.rows
            bands = _nearest_divisor(self.bands, self.permutations, MOST_BANDS)
            raise ValueError(
                f"bands {self.bands} x rows {self.rows} are {product} permutations, not {self.permutations}; "
                f"nearest: bands {bands} and rows {self.permutations // bands}, or permutations {product}"
            )
        return self


def _nearest_divisor(number: int, of: int, most: int | None = None) -> int:
    """Of a whole number, and at most `most`."""
    divisors = [count for count in range(1, (most or of) + 1) if of % count == 0]
    return min(divisors, key=lambda count: abs(count - number))


class Tokenizer(Section):
    """A byte-level BPE or WordPiece, trained on a deterministic sample of what is left."""

    algorithm: Algorithm = what("bpe")
    vocabulary: int = what(4096, ge=LEAST_VOCABULARY, le=MOST_VOCABULARY)  # tokens, the special ones included
    vocabulary_multiple: int = what(64, ge=1, le=4096)  # and more, up to such a multiple
    digits: int = what(3, ge=1, le=MOST_DIGITS)  # of a number, in one token at most
    # of two and more white spaces in a row: as in GPT-4, the last leads the next word; each run is one piece,
    # line ends and indentation included, for code; or each white space is one
    whitespace: Whitespace = what("words")
    sample_bytes: int = what(10_000_000, ge=1)
    seed: int = what(1, ge=0, le=MOST_SEED)

    @property
    def rounded_vocabulary(self) -> int:
        """Rows of the embedding that fit the tiles of a matrix product: 128 bytes of bfloat16 are 64. All of
        them are tokens that were learned, so none is wasted, and no sampled id is without a text."""
        return -(-self.vocabulary // self.vocabulary_multiple) * self.vocabulary_multiple


class Tokens(Section):
    """What is left → token shards."""

    held_out: float = what(0.01, gt=0, lt=1)  # the share of documents kept from training, by their id


SHAPE = ("width", "layers", "heads", "kv_heads", "hidden")  # of a model, what its depth decides


class Model(Section):
    """The shape of the transformer; the vocabulary is the tokenizer's. One dial, `depth`, gives a rung of a
    ladder of shapes; without it each size is written by hand."""

    depth: int | None = how(None, ge=1, le=10_000)  # what follows from it is hashed
    width: int = what(128, ge=1, le=1_000_000)
    layers: int = what(6, ge=1, le=10_000)
    heads: int = what(4, ge=1)
    kv_heads: int = what(2, ge=1)
    hidden: int = what(384, ge=1, le=10_000_000)
    context: int = what(256, ge=2, le=100_000_000)
    rope_theta: float = what(10_000.0, gt=0)
    tied: bool = what(True)  # whether the output projection is the embedding
    qk_norm: bool = what(False)  # each head's queries and keys are normalised; exported as Qwen3, not Llama

    @model_validator(mode="before")
    @classmethod
    def _shape_of_depth(cls, body: Any) -> Any:
        depth = body.get("depth") if isinstance(body, dict) else None
        if type(depth) is not int or not 1 <= depth <= 10_000:
            return body
        from ingot.model.config import ModelConfig

        rung = ModelConfig.of_depth(depth, vocabulary=512, context=2)
        shape = {name: getattr(rung, name) for name in SHAPE}
        for name, value in shape.items():
            if body.get(name, value) != value:
                by_hand = ", ".join(f"{name}: {value}" for name, value in shape.items())
                raise ValueError(
                    f"depth {depth} gives {name} {value}, not {body[name]}; leave out {name}, or leave out "
                    f"depth and write all sizes by hand, from {by_hand}"
                )
        return {**body, **shape}

    @model_validator(mode="after")
    def _possible(self) -> Model:
        self.config(vocabulary=512)
        return self

    def config(self, vocabulary: int) -> ModelConfig:
        """The model's configuration. Raises ValueError for an impossible shape."""
        from ingot.model.config import ModelConfig  # brings torch, which `ingot runs list` needs not wait for

        return ModelConfig(vocabulary=vocabulary, **self.model_dump(exclude={"depth"}))


class Training(Section):
    """What pretraining, fine-tuning and preference training share."""

    steps: int = what(ge=1)
    learning_rate: float = what(gt=0)
    optimizer: Literal["adamw", "muon"] = what("adamw")  # one learning rate serves either
    momentum: float = what(0.95, ge=0, lt=1)  # of muon
    warmup_steps: int = what(0, ge=0)
    schedule: Literal["cosine", "warmup-stable-decay"] = what("cosine")
    floor: float = what(0.1, ge=0, le=1)  # the last learning rate over the peak
    decay: float = what(0.2, gt=0, le=1)  # the share of the steps in which warmup-stable-decay falls
    weight_decay: float = what(0.1, ge=0)
    clip: float = what(1.0, gt=0)  # the gradient's greatest norm
    seed: int = what(1, ge=0, le=MOST_SEED)
    precision: Literal["float32", "bfloat16"] = what("float32")
    workers: Workers = how(1)
    resize_every: float = how(30, gt=0)  # seconds between looks for room for more of them, up to the most
    replicas: int = how(1, ge=1)  # sharded copies of the model (HSDP); 1 shards it over all workers
    cpus_per_worker: float = how(1, gt=0)
    gpus_per_worker: float = how(0, ge=0)
    placement: Literal["pack", "spread"] = how("pack")  # workers on few nodes, or on as many as there are
    micro_batch: int = how(8, ge=1)  # rows of one forward pass of one worker
    compile: bool = how(False)  # needs a C++ compiler on every worker
    # Of activations, what the backward pass computes again: nothing, all but matrix products and attention,
    # or all of a block.
    checkpointing: Literal["none", "selective", "full"] = how("none")
    read_ahead: int = how(8, ge=1)  # steps whose rows are fetched while an earlier one runs, at most
    checkpoint_every: int = how(100, ge=1)
    keep_checkpoints: int = how(2, ge=1)  # the newest ones
    log_every: int = how(10, ge=1)
    failures: int = how(3, ge=0)  # losses of workers that a run survives without a checkpoint in between

    @field_validator("workers", mode="before")
    @classmethod
    def _some_workers(cls, value: Any) -> Any:
        bounds = value if isinstance(value, list | tuple) else [value]
        numbers = all(type(bound) is int and bound >= 1 for bound in bounds)
        if not numbers or len(bounds) != (2 if bounds is value else 1):
            raise ValueError(
                f"{value!r} is no number of workers; write 1 or more, or the least and the most: [1, 4]"
            )
        if bounds[0] > bounds[-1]:
            raise ValueError(f"{value!r}: the least comes first; write [{bounds[-1]}, {bounds[0]}]")
        return tuple(bounds) if bounds is value else value

    @property
    def least_workers(self) -> int:
        """Without so many nothing is trained."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _schedule_fits(self) -> Training:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} leaves none of {self.steps} steps; "
                f"nearest: {self.steps - 1}"
            )
        left = self.steps - self.warmup_steps
        if self.schedule == "warmup-stable-decay" and self.decay_steps > left:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay {self.decay:g} (the last {self.decay_steps} "
                f"steps) overlap in {self.steps} steps; nearest: warmup_steps "
                f"{self.steps - self.decay_steps}, or decay {math.floor(1e6 * left / self.steps) / 1e6:g}"
            )
        return self

    @property
    def decay_steps(self) -> int:
        """The steps at the end in which warmup-stable-decay falls to the floor: at least the last one."""
        return max(1, round(self.decay * self.steps))

    @model_validator(mode="after")
    def _replicas_divide(self) -> Training:
        for workers in (self.least_workers, self.most_workers):
            if workers % self.replicas:
                nearest = _nearest_divisor(self.replicas, math.gcd(self.least_workers, self.most_workers))
                raise ValueError(
                    f"replicas {self.replicas} does not divide workers ({workers}), and each replica of the "
                    f"model is sharded over as many; nearest: {nearest}"
                )
        return self


class Measured(Training):
    """A training whose model is measured on what was held out, before, meanwhile and after."""

    evaluate_every: int = how(1000, ge=1)  # steps; a checkpoint is saved first
    sample_tokens: int = how(32, ge=1)  # that follow each prompt, at each evaluation


class Pretrain(Measured):
    """Token shards → a model."""

    model: Model = what(default_factory=Model)
    batch_tokens: int = what(8192, ge=2)
    z_loss: float = what(0.0, ge=0)  # weight of the softmax's squared log-denominator; 1e-4 is usual
    packing: Literal["concatenate", "best-fit"] = what("concatenate")  # documents end to end, or none cut
    mask_documents: bool = what(False)  # attention within each document of a row, where positions begin anew
    # Source → its share of the rows, or parts of them; by default as many as each has tokens.
    mix: dict[Name, Annotated[float, Field(strict=True)]] | None = what(None)
    cache_bytes: int = how(512_000_000, ge=0)  # of the token shards, that a worker keeps in memory
    evaluate_tokens: int = what(65_536, ge=1)  # held-out tokens that bits per byte are measured on, at most
    prompts: list[str] = how(["def", "import", "class"])  # that the model goes on with at each evaluation

    @model_validator(mode="after")
    def _batch_divides(self) -> Pretrain:
        context = self.model.context
        if self.batch_tokens % context:
            nearest = max(context, round(self.batch_tokens / context) * context)
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is no multiple of model.context ({context}); "
                f"nearest: {nearest}"
            )
        if self.batch_tokens // context < self.most_workers:
            raise ValueError(
                f"batch_tokens {self.batch_tokens} holds {self.batch_tokens // context} rows of {context} "
                f"tokens, too few for {self.most_workers} workers; at least {self.most_workers * context}"
            )
        return self

    @field_validator("mix")
    @classmethod
    def _mix_is_possible(cls, mix: dict[str, float] | None) -> dict[str, float] | None:
        if mix is not None:
            from ingot.pipelines.training.mixture import Mixture  # brings numpy

            Mixture(mix)
        return mix


class Sft(Measured):
    """Conversations made from the corpus → a model that answers."""

    batch_conversations: int = what(32, ge=1)
    z_loss: float = what(0.0, ge=0)  # as in pretrain
    most: int = what(20_000, ge=1)  # conversations, at most
    documents: int = what(100_000, ge=1)  # about so many of the corpus, drawn by id, are read for functions


class Preference(Training):
    """Pairs from held-out functions → a model that prefers the real body (DPO)."""

    batch_pairs: int = what(16, ge=1)
    beta: float = what(5.0, gt=0)  # as in Tulu 3; where average is false, 0.1 is usual
    average: bool = what(True)  # log-ratios per token, so that length is no advantage
    label_smoothing: float = what(0.0, ge=0, lt=0.5)
    pairs: int = what(4000, ge=1)  # for training, at most
    held_out_pairs: int = what(400, ge=200)  # for the accuracies, at most

    @model_validator(mode="after")
    def _batch_fits(self) -> Preference:
        if self.pairs < self.batch_pairs:
            raise ValueError(f"pairs {self.pairs} do not fill a batch of batch_pairs {self.batch_pairs}")
        return self


class Evaluate(Section):
    """The last checkpoint, measured on held-out text and sampled from."""

    prompts: list[str] = what(["def", "import", "class"], min_length=1)
    sample_tokens: int = what(64, ge=1)
    temperature: float = what(0.7, ge=0)
    seed: int = what(1, ge=0, le=MOST_SEED)
    evaluate_tokens: int = what(65_536, ge=1)
    mask_documents: bool = what(False)  # as in pretrain


class Publish(Section):
    """A version of a model in the registry."""

    model: Name = what()
