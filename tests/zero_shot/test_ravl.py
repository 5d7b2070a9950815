"""RaVL: clusters against scikit-learn's silhouette, a small case by hand, and the loss with its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from zero_shot.ravl import cosine_distances, discover, k_medoids, silhouette
from zero_shot.ravl_loss import region_aware_loss

RNG = np.random.default_rng(0)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def blobs(count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    truth = np.repeat(np.arange(3), count // 3)
    return unit(np.eye(5)[truth] + 0.1 * RNG.standard_normal((count, 5))), truth


def test_medoids_and_silhouettes() -> None:
    rows, truth = blobs()
    distances = cosine_distances(rows)
    assert distances.min() == 0
    assert distances.max() <= 1
    assignment, medoids = k_medoids(distances, 3, seed=0)
    # The same partition, whatever the numbers are.
    assert len({(a, b) for a, b in zip(assignment, truth, strict=True)}) == 3
    for number, medoid in enumerate(medoids):
        own = np.flatnonzero(assignment == number)
        assert distances[np.ix_(own, own)].sum(axis=0).argmin() == np.flatnonzero(own == medoid)[0]
    for found in (assignment, truth, RNG.integers(0, 4, 30), np.r_[np.zeros(29, dtype=int), 1]):
        expected = silhouette_score(distances, found, metric="precomputed")
        assert silhouette(distances, found) == pytest.approx(expected)
    assert silhouette(distances, np.zeros(30, dtype=int)) == -1
    again = k_medoids(distances, 3, seed=0)
    assert np.array_equal(again[0], assignment)
    # Six copies of two points are two clusters, however many are asked for.
    assert len(k_medoids(np.kron(1 - np.eye(2), np.ones((3, 3))), 4, seed=0)[1]) == 2


def case() -> dict[str, np.ndarray]:
    """Ten images of two classes with two regions each. Region kinds: 0 and 1 are what the classes look like, 2 a mark.

    The mark lies on three images of class 0, all right, and two of class 1, both taken for class 0 because of it;
    without it, one of two of class 0 is wrong and all three of class 1 are right.
    """
    labels = np.array([0] * 5 + [1] * 5)
    predicted = np.array([0, 0, 0, 0, 1, 0, 0, 1, 1, 1])
    mark = [0, 1, 2, 5, 6]
    kinds, image_of = [], []
    for image, label in enumerate(labels):
        image_of += [image, image]
        kinds += [label, 2 if image in mark else label]
    directions = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    rows = unit(directions[kinds] + 0.02 * np.random.default_rng(1).standard_normal((20, 3)))
    # The prompt of class 0 resembles the mark.
    classes = unit(np.array([[0.5, 0, 1.0], [0, 1.0, 0]]))
    return {
        "regions": rows,
        "image_of": np.array(image_of),
        "labels": labels,
        "predicted": predicted,
        "class_features": classes,
    }


def test_the_mark_is_found_by_hand() -> None:
    found = discover(**case(), counts=[2, 3, 4])
    assert found.clusters == 3
    assert found.silhouette > 0.9
    (flagged,) = found.flagged
    assert set(flagged.regions) == {1, 3, 5, 11, 13}
    first, second = flagged.gaps
    # Class 0: 3 in (all right), 2 out (half right). 2 * 2 / 5 * (1 - 1/2) = 0.4.
    assert (first.n_in, first.n_out, first.accuracy_in, first.accuracy_out) == (3, 2, 1.0, 0.5)
    assert first.gap == pytest.approx(0.4)
    # Class 1: 2 in (none right), 3 out (all right). 2 * 2 / 5 * -1 = -0.8.
    assert second.gap == pytest.approx(-0.8)
    assert flagged.score == pytest.approx(1.2)
    assert flagged.influence == 1.0


def test_what_is_not_flagged() -> None:
    given = case()
    # Nothing harmed: no cluster has both signs.
    assert discover(**(given | {"predicted": given["labels"]}), counts=[3]).flagged == ()
    # The wrong answers come from elsewhere: class 0 resembles what class 1 looks like, not the mark.
    led = given | {"class_features": unit(np.array([[0.1, 1.0, 0.0], [0.0, 1.0, 0.1]]))}
    assert discover(**led, counts=[3]).flagged == ()
    (kept,) = discover(**led, counts=[3], least_influence=0.0).flagged
    assert kept.influence == 0.0
    # The numbers of clusters of the released code: 2C .. 5C - 1.
    assert 4 <= discover(**given).clusters <= 9


def reference(v, r, t, y, s, spurious, padding) -> float:
    terms, whole = [], []
    for i in range(len(v)):
        whole.append(np.log(np.exp(s * t @ v[i]).sum()) - s * t[y[i]] @ v[i])
        good = [r[i, j] for j in range(r.shape[1]) if not spurious[i, j] and not padding[i, j]]
        bad = [r[i, j] for j in range(r.shape[1]) if spurious[i, j] and not padding[i, j]]
        if good:
            top = sum(np.exp(s * g @ t[y[i]]) for g in good)
            rest = sum(np.exp(s * g @ t.T).sum() for g in good) + sum(np.exp(s * b @ t[y[i]]) for b in bad)
            terms.append(-np.log(top / rest))
    return float(np.mean(whole) + np.mean(terms))


def test_the_loss_and_its_gradient_against_numpy() -> None:
    v, r, t = (unit(RNG.standard_normal(shape)) for shape in ((4, 6), (4, 3, 6), (5, 6)))
    y = np.array([0, 3, 4, 1])
    spurious = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
    padding = np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 1]], dtype=bool)

    def ours(*parts: np.ndarray) -> torch.Tensor:
        tensors = [torch.tensor(p, requires_grad=True) for p in parts]
        loss = region_aware_loss(*tensors, torch.tensor(y), 3.0, torch.tensor(spurious), torch.tensor(padding))
        loss.backward()
        gradients.extend(p.grad.numpy() for p in tensors if p.grad is not None)
        return loss.detach()

    gradients: list[np.ndarray] = []
    assert float(ours(v, r, t)) == pytest.approx(reference(v, r, t, y, 3.0, spurious, padding), abs=1e-12)
    for number, part in enumerate((v, r, t)):
        slope = np.zeros_like(part)
        for place in np.ndindex(*part.shape):
            sides = []
            for sign in (1, -1):
                moved = [v, r, t]
                moved[number] = part.copy()
                moved[number][place] += sign * 1e-5
                sides.append(reference(*moved, y, 3.0, spurious, padding))
            slope[place] = (sides[0] - sides[1]) / 2e-5
        assert gradients[number] == pytest.approx(slope, abs=1e-8)
    # What is flagged is pushed from its class; where nothing else is left it has no gradient.
    assert (gradients[1][2] == 0).all()


def test_reductions_of_the_loss() -> None:
    v, r, t = (torch.tensor(unit(RNG.standard_normal(shape))) for shape in ((4, 6), (4, 1, 6), (5, 6)))
    y = torch.tensor([0, 3, 4, 1])
    none = torch.zeros(4, 1, dtype=torch.bool)
    cross_entropy = torch.nn.functional.cross_entropy
    both = cross_entropy(7 * v @ t.T, y) + cross_entropy(7 * r[:, 0] @ t.T, y)
    assert torch.allclose(region_aware_loss(v, r, t, y, 7.0, none), both)
    assert torch.allclose(region_aware_loss(v, r, t, y, 7.0, ~none), cross_entropy(7 * v @ t.T, y))
    # The order of regions does not matter, and a scale of 100 does not overflow in fp32.
    many = torch.tensor(unit(RNG.standard_normal((4, 3, 6))))
    flags = torch.tensor(RNG.random((4, 3)) < 0.4)
    order = [2, 0, 1]
    assert torch.allclose(
        region_aware_loss(v, many, t, y, 7.0, flags), region_aware_loss(v, many[:, order], t, y, 7.0, flags[:, order])
    )
    assert torch.isfinite(region_aware_loss(v.float(), many.float(), t.float(), y, 100.0, flags))


def test_refusals() -> None:
    given = case()
    for changed, expected in (
        ({"image_of": given["image_of"] + 1}, r"image_of must lie in 0 \.\. 9"),
        ({"labels": given["labels"] + 1}, r"0 \.\. 1"),
        ({"regions": given["regions"][:2], "image_of": given["image_of"][:2]}, "regions can be clustered"),
        ({"counts": [40]}, "too few for"),
    ):
        with pytest.raises(ValueError, match=expected):
            discover(**(given | changed))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"1 \.\. 20"):
        k_medoids(np.zeros((20, 20)), 0, seed=0)
    eye = torch.eye(2)
    with pytest.raises(ValueError, match="image 1 of the batch"):
        region_aware_loss(
            eye,
            eye[:, None],
            eye,
            torch.arange(2),
            1.0,
            torch.zeros(2, 1, dtype=torch.bool),
            torch.tensor([[False], [True]]),
        )
