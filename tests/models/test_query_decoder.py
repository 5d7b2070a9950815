"""The query decoder and the tokens that it looks at."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from clip_med.data.images import Preprocess
from clip_med.models.config import ResNetModel
from clip_med.models.construct import construct
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.models.image_tokens import features_and_tokens, token_width
from clip_med.models.query_decoder import DecoderShape, QueryClass, QueryDecoder
from tests.tiny_run import TINY

pytestmark = pytest.mark.usefixtures("one_thread")


SHAPE = DecoderShape(query_width=4, token_width=6, width=8, layers=2, heads=2, feed_forward=16)


def decoder(queries: torch.Tensor) -> QueryDecoder:
    torch.manual_seed(0)
    classes = [QueryClass(label=f"c{i}", texts=("told",), weights=(1.0,)) for i in range(len(queries))]
    return QueryDecoder(classes, queries, SHAPE).double().eval()


def test_a_text_is_a_memory_of_one_place_for_the_same_decoder() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, texts = (torch.randn(n, k, generator=generator, dtype=torch.float64) for n, k in ((3, 4), (2, 6)))
    classes = [QueryClass(label=f"c{i}", texts=("told",), weights=(1.0,)) for i in range(3)]
    reads = QueryDecoder(classes, queries, dataclasses.replace(SHAPE, text_width=6)).double().eval()
    assert reads.from_text is not None
    reads.from_text.load_state_dict(reads.to_memory.state_dict())
    torch.testing.assert_close(reads.of_text(texts), reads(texts[:, None]), rtol=0, atol=0)
    assert decoder(queries).from_text is None


def test_queries_in_another_order_answer_in_that_order_and_images_do_not_meet() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    tokens = torch.randn(3, 7, 6, generator=generator, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    answers = decoder(queries)(tokens)
    assert answers.shape == (3, 5)
    assert answers.std() > 1e-3
    torch.testing.assert_close(decoder(queries[order])(tokens), answers[:, order], rtol=0, atol=1e-12)
    places = torch.randperm(7, generator=generator)
    torch.testing.assert_close(decoder(queries)(tokens[:, places]), answers, rtol=0, atol=1e-12)
    torch.testing.assert_close(decoder(queries)(tokens[1:2]), answers[1:2], rtol=0, atol=1e-12)
    # Other classes than those of training are asked likewise.
    torch.testing.assert_close(decoder(queries)(tokens, queries[order]), answers[:, order], rtol=0, atol=1e-12)
    assert decoder(queries)(tokens, queries[:2]).shape == (3, 2)


@pytest.mark.parametrize("name", ["vit", "test_efficientnet", "test_vit"])
def test_features_are_those_of_encode_image_and_tokens_have_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    cfg = copy.deepcopy(TINY.model_cfg())
    size = 32
    if name != "vit":
        size = 64 if name == "test_efficientnet" else 160
        cfg["vision_cfg"] = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": size}
    encoder = DualEncoder(construct(cfg), cfg, Preprocess(size=size), lambda texts: torch.zeros(len(texts), 24)).eval()
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    features, tokens = features_and_tokens(encoder, images)
    assert torch.equal(features, encoder.encode_image(images))
    assert tokens.shape[0] == 2
    assert tokens.shape[2] == token_width(encoder)
    tokens.square().sum().backward()
    assert next(encoder.clip.visual.parameters()).grad is not None


def test_a_tower_without_known_places_is_refused() -> None:
    model = build_model(ResNetModel(image_size=32, image_width=4, embed_dim=16, text_width=32, text_layers=1))
    with pytest.raises(ValueError, match="places of an image tower of kind ModifiedResNet"):
        token_width(model)
