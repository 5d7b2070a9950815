"""Pretraining as a whole: from a configuration to shards, model, loss, loader and the training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from clip_med.config import PositiveInt, config
from clip_med.data.batch import Tokenize
from clip_med.data.captions import drawable
from clip_med.data.cores import own_cores
from clip_med.data.loader import LoaderConfig, TrainLoader
from clip_med.data.remote import RemoteConfig
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from clip_med.data.training_data import MixtureConfig, SourceConfig, TrainingData, open_training_data
from clip_med.distributed import process_group, rank, world_size
from clip_med.knowledge.augmentation import DescribeConfig, Describer
from clip_med.losses.config import GroupPositivesConfig, InfoNCEConfig, LossConfig, SoftTargetsConfig
from clip_med.losses.contrastive import build_loss, chance_loss
from clip_med.losses.group_positives import Relatives
from clip_med.models.caption_lengths import report_caption_lengths
from clip_med.models.compute import apply_compute
from clip_med.models.config import LoRAConfig, ModelConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.models.lora import add_lora
from clip_med.training.alignment import AlignConfig, KnowledgeAlignment
from clip_med.training.config import FSDPConfig, TrainConfig
from clip_med.training.facets import FacetConfig, KnowledgeFacets
from clip_med.training.heads import KnowledgeHeads, check_heads
from clip_med.training.prototypes import PrototypeConfig, Prototypes
from clip_med.training.queries import KnowledgeQueries, QueryConfig
from clip_med.training.relatives import label_relatives
from clip_med.training.run_folder import RunFolder
from clip_med.training.teacher import DistillConfig, Teacher
from clip_med.training.terms import Term
from clip_med.training.trainer import Evaluator, PooledText, StepReport, TrainSummary, train

log = logging.getLogger(__name__)


@config
class PretrainConfig:
    """Everything that decides the weights at the end of a run."""

    model: ModelConfig
    train: TrainConfig
    shards: tuple[str, ...] = ()
    """Folders of shard sets, concatenated in this order: one source."""
    sources: tuple[SourceConfig, ...] = ()
    """Named sources, to be mixed; instead of `shards`."""
    mixture: MixtureConfig = MixtureConfig()
    lora: LoRAConfig | None = None
    """Low-rank adapters in the locked towers; None: none."""
    loss: LossConfig = InfoNCEConfig()
    distill: DistillConfig | None = None
    """A teacher whose similarities the model learns besides; None: none."""
    align: AlignConfig | None = None
    """A frozen knowledge encoder that the text tower stays near; None: none."""
    prototypes: tuple[PrototypeConfig, ...] = ()
    """Sets of classes whose images are drawn to what is said of the class; empty: none."""
    facets: FacetConfig | None = None
    """Classes whose images are drawn to several facets of knowledge, each by a projection of its own; None: none."""
    queries: QueryConfig | None = None
    """Classes that a decoder looks for in the places of each image; None: none."""
    loader: LoaderConfig = LoaderConfig()
    describe: DescribeConfig | None = None
    """Labels in captions give way to descriptions of the knowledge base; None: captions are shown as they are."""
    remote: RemoteConfig = RemoteConfig()
    window_shards: PositiveInt = 16
    """Shards whose samples are shuffled together; more mixes better and reads from more files at once."""

    def __post_init__(self) -> None:
        """Refuse data given twice or not at all, and a budget that a mixture gives no meaning."""
        if bool(self.shards) == bool(self.sources):
            raise ValueError(
                f"give shards or sources, one of the two; got shards={self.shards}, sources={self.sources}"
            )
        if self.train.epochs is not None and (len(self.sources) > 1 or not self.mixture.natural):
            raise ValueError("train.epochs: sources of a mixture pass at different rates; give train.samples")
        if self.train.cache_text and self.loader.captions.count > 1:
            raise ValueError("train.cache_text holds single captions; loader.captions.count must be 1")
        if self.describe is not None and self.loader.positives != "label":
            raise ValueError(
                f"describe needs loader.positives: label, got {self.loader.positives}; two images of one class with "
                f"different descriptions would count as negatives"
            )
        if isinstance(self.loss, GroupPositivesConfig | SoftTargetsConfig) and self.loader.positives != "label":
            raise ValueError(f"loss.kind {self.loss.kind} needs loader.positives: label, got {self.loader.positives}")
        if self.prototypes and self.loader.positives != "label":
            raise ValueError(
                f"prototypes needs loader.positives: label, got {self.loader.positives}: labels name classes"
            )
        if self.prototypes and isinstance(self.train.parallel, FSDPConfig):
            raise ValueError(
                "prototypes encodes sentences outside the step's forward pass, and with train.parallel.kind: fsdp the "
                "weights lie in parts; use ddp"
            )
        check_heads(self.facets, self.queries, self.train, self.loader.positives)
        if self.lora is not None:
            _check_lora(self.lora, self.train)
        elif self.train.lock_image == self.train.lock_text == "all" and not (
            self.train.unlock_image or self.train.unlock_text
        ):
            raise ValueError(
                "train.lock_image: all with train.lock_text: all leaves only the logit scale to train; "
                "use trunk for one, or lora"
            )

    def data_sources(self) -> tuple[SourceConfig, ...]:
        """`sources`, or `shards` as the only one, named "data"."""
        return self.sources or (SourceConfig(name="data", shards=self.shards),)


def pretrain(
    config: PretrainConfig,
    run: Path,
    *,
    evaluators: Sequence[Evaluator] = (),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    allow_data_change: bool = False,
    on_built: Callable[[DualEncoder], None] | None = None,
    on_start: Callable[[str], None] = log.info,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainSummary:
    """Train a dual encoder into the run folder, or continue what is there; under torchrun, on all its processes.

    Args:
        run: created if needed; see `RunFolder`.
        evaluators: called on the encoder during training and at its end.
        allow_data_change: continue a run whose shards or mixture have changed since its last checkpoint.
        on_built: called on rank 0 with the model as it is before any training, at every start.
        on_start: receives lines that describe data, model and length before the first step.
        on_step: see `train`.

    Raises:
        ValueError: shards, model or run folder that do not fit; each names what and where.
    """
    with process_group(device, timeout_seconds=config.train.parallel.timeout_seconds) as chosen:
        data = open_training_data(
            config.data_sources(),
            config.mixture,
            seed=config.train.seed,
            batch_size=config.train.batch_size,
            window_shards=config.window_shards,
            remote=config.remote,
        )
        shards = data.shards
        total_steps = config.train.total_steps(len(shards))
        with RunFolder(run, config) as folder:
            torch.manual_seed(config.train.seed)
            encoder = build_model(config.model)
            adapted = [] if config.lora is None else add_lora(encoder, config.lora)
            apply_compute(encoder, config.train.compute)
            encoder.to(chosen)
            if config.train.channels_last:
                # Only the weights: a convolution takes the layout of its weights whatever its input has.
                encoder.clip.visual.to(memory_format=torch.channels_last)
            on_start(_description(config, shards, encoder, total_steps, chosen))
            if adapted:
                trained = sum(p.numel() for name, p in encoder.clip.named_parameters() if ".lora_" in name)
                on_start(f"adapters on {len(adapted)} weights: {trained:,} parameters")
            for line in data.describe(total_steps * config.train.batch_size) if config.sources else ():
                on_start(line)
            if on_built is not None and folder.writes:
                on_built(encoder)
            report_caption_lengths(encoder, shards, config.loader.captions, on_start)
            added = _additions(config, encoder, shards, on_start)
            pooled_text = None
            if config.train.cache_text:
                pooled_text = _text_cache(encoder, shards, config, run, on_start, added.describer)
            tokenize = None if pooled_text else encoder.tokenize
            loader = _loader(config, data, encoder, tokenize, on_start, added.describer)
            return train(
                encoder,
                loader,
                build_loss(config.loss, added.relatives),
                config.train,
                folder,
                total_steps=total_steps,
                evaluators=evaluators,
                pooled_text=pooled_text,
                terms=added.terms,
                knowledge=added.heads,
                chance_loss=_chance_loss(config, added),
                allow_data_change=allow_data_change,
                on_step=on_step,
            )


@dataclass(frozen=True, kw_only=True)
class _Additions:
    """What is added to images, captions and the contrastive loss; nothing by default."""

    describer: Describer | None
    terms: tuple[Term, ...]
    heads: KnowledgeHeads
    relatives: Relatives | None


def _additions(
    config: PretrainConfig, encoder: DualEncoder, shards: ShardSet, on_start: Callable[[str], None]
) -> _Additions:
    """Build what the configuration adds, and say of each how much of the data it concerns."""
    # Read once, and only where something asks.
    spread = cache(lambda: _spread(shards))
    describer = None if config.describe is None else Describer(config.describe)
    if describer is not None:
        on_start(_coverage(describer, encoder, spread()))
    terms: list[Term] = []
    if config.distill is not None:
        terms.append(Teacher(config.distill, encoder, config.train.precision))
    if config.align is not None:
        terms.append(KnowledgeAlignment(config.align, encoder, config.train.precision, config.loss.tile))
    prototypes = [Prototypes(one, encoder, config.train.precision) for one in config.prototypes]
    for term in prototypes:
        on_start(term.coverage(spread()))
    facets = None if config.facets is None else KnowledgeFacets(config.facets, encoder, config.train.precision)
    queries = None if config.queries is None else KnowledgeQueries(config.queries, encoder)
    for head in (facets, queries):
        if head is not None:
            on_start(head.coverage(spread()))
    relatives = None
    if isinstance(config.loss, GroupPositivesConfig) and config.loss.relatives:
        relatives, line = label_relatives(config.loss, shards.columns())
        on_start(line)
    heads = KnowledgeHeads(facets, queries)
    return _Additions(describer=describer, terms=(*terms, *prototypes), heads=heads, relatives=relatives)


def _chance_loss(config: PretrainConfig, added: _Additions) -> float | None:
    alone = not added.terms and config.facets is None and config.queries is None
    return chance_loss(config.loss, config.train.batch_size) if alone else None


def _loader(
    config: PretrainConfig,
    data: TrainingData,
    encoder: DualEncoder,
    tokenize: Tokenize | None,
    on_start: Callable[[str], None],
    describer: Describer | None,
) -> TrainLoader:
    """This rank's loader, with no more workers than the process has cores: the batches are the same for any number."""
    workers = min(config.loader.workers, own_cores())
    if workers < config.loader.workers:
        on_start(f"{workers} of {config.loader.workers} workers: this process has {workers} core(s) of its own")
    return TrainLoader(
        data.shards,
        data.order,
        encoder.preprocess,
        replace(config.loader, workers=workers),
        global_batch=config.train.batch_size,
        rank=rank(),
        world_size=world_size(),
        tokenize=tokenize,
        sources=data.sources,
        rewrite=None if describer is None else describer.write,
    )


def _coverage(describer: Describer, encoder: DualEncoder, samples: Sequence[Sample]) -> str:
    """How many labels have descriptions, and what the text tower cuts, from samples spread over the shards.

    Raises:
        ValueError: no label has any.
    """
    found = describer.coverage(samples)
    if not found.texts:
        raise ValueError(
            f"describe: none of the labels {list(found.unknown)[:10]} of {len(samples):,} samples is known in its "
            f"modality; name their findings in describe.findings"
        )
    texts = describer.texts(samples)
    return (
        f"descriptions of {len(found.texts)} of {len(found.texts) + len(found.unknown)} labels: {len(texts)} texts, "
        f"{encoder.truncated(texts)} longer than the context; none of: {', '.join(found.unknown) or '-'}"
    )


def _spread(shards: ShardSet) -> list[Sample]:
    """Up to 2,000 samples at equal distances, without their images."""
    return [shards.metadata(index) for index in range(0, len(shards), -(-len(shards) // 2000))]


def _check_lora(lora: LoRAConfig, train: TrainConfig) -> None:
    """Refuse adapters in towers that train as a whole, in part, or not through their own forward pass."""
    for tower, adapted, policy, groups in (
        ("image", lora.image, train.lock_image, train.unlock_image),
        ("text", lora.text, train.lock_text, train.unlock_text),
    ):
        if adapted and (policy == "none" or groups):
            raise ValueError(
                f"lora.{tower}: true needs train.lock_{tower}: trunk (its head trains too) or all, and "
                f"train.unlock_{tower}: 0; got {policy} and {groups}"
            )
    if lora.text and train.cache_text:
        raise ValueError("lora.text: true changes the features that train.cache_text keeps; set one of them to false")


def _description(
    config: PretrainConfig, shards: ShardSet, encoder: DualEncoder, total_steps: int, device: torch.device
) -> str:
    images = sum(parameter.numel() for parameter in encoder.clip.visual.parameters())
    everything = sum(parameter.numel() for parameter in encoder.clip.parameters())
    epochs = total_steps * config.train.batch_size / len(shards)
    return (
        f"{len(shards):,} samples in {len(shards.sizes)} shard(s); {images / 1e6:.1f} M parameters in the image tower, "
        f"{(everything - images) / 1e6:.1f} M in the text tower; {total_steps:,} steps of {config.train.batch_size} "
        f"pairs ({epochs:.2f} epochs) on {world_size()} x {device.type}, {config.train.precision}"
    )


def _text_cache(
    encoder: DualEncoder,
    shards: ShardSet,
    config: PretrainConfig,
    run: Path,
    on_start: Callable[[str], None],
    describer: Describer | None,
) -> PooledText:
    """Pooled features of every caption that may be drawn, from the frozen trunk, kept in the run folder."""
    from clip_med.models.text_cache import FrozenTextCache

    encoder.lock(image=config.train.lock_image, text=config.train.lock_text)
    policy = config.loader.captions
    captions: set[str] = set()
    for i in range(len(shards)):
        sample = shards.metadata(i)
        for caption in drawable(sample, policy):
            captions |= {caption} if describer is None else set(describer.every(caption, sample))
    on_start(f"caching text features of {len(captions):,} distinct captions")
    return FrozenTextCache.build(encoder, sorted(captions), directory=run / "text_cache").pooled


__all__ = ["PretrainConfig", "pretrain"]
