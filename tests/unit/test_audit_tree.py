"""RFC 9162 trees: the published vectors, and every proof of every small tree."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ares_stream.audit import verify_proof
from ares_stream.audit.tree import (
    EMPTY_ROOT,
    MerkleRange,
    consistency_ranges,
    hash_ranges,
    inclusion_ranges,
    leaf_hash,
    node_hash,
)
from ares_stream.audit.verify_proof import Wrong, check_consistency, check_inclusion


def verify_inclusion(leaf: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> bool:
    """What the auditor's own file says."""
    try:
        check_inclusion(leaf, index, size, proof, root)
    except Wrong:
        return False
    return True


def verify_consistency(
    first: int, second: int, proof: list[bytes], first_root: bytes, second_root: bytes
) -> bool:
    """What the auditor's own file says."""
    try:
        check_consistency(first, first_root, second, second_root, proof)
    except Wrong:
        return False
    return True


LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""The vectors of the certificate-transparency implementations, trees of 1 to 8 leaves."""


def grown(leaves: list[bytes]) -> MerkleRange:
    tree = MerkleRange()
    for leaf in leaves:
        tree.append(leaf)
    return tree


def head(leaves: list[bytes]) -> bytes:
    """The RFC's recursive definition (2.1.1), word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(head(leaves[:split]), head(leaves[split:]))


def made(count: int) -> list[bytes]:
    return [leaf_hash(b"%d" % number) for number in range(count)]


def test_the_published_roots_come_out() -> None:
    tree = MerkleRange()
    assert tree.root() == EMPTY_ROOT
    for data, root in zip(LEAVES, ROOTS, strict=True):
        tree.append(leaf_hash(data))
        assert tree.root().hex() == root


@given(st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_a_grown_tree_is_the_recursive_one_and_goes_on_from_its_peaks(size: int) -> None:
    leaves = made(size)
    tree = grown(leaves[: size // 2])
    again = MerkleRange(tree.size, tree.peaks)
    for leaf in leaves[size // 2 :]:
        again.append(leaf)
    assert again.root() == head(leaves)
    assert tree.root() == head(leaves[: size // 2])


def test_every_inclusion_proof_of_small_trees_holds_and_of_no_other_leaf() -> None:
    for size in range(1, 20):
        leaves = made(size)
        root = head(leaves)
        for index in range(size):
            proof = hash_ranges(leaves, inclusion_ranges(index, size))
            for claimed in range(size):
                holds = verify_inclusion(leaves[index], claimed, size, proof, root)
                assert holds == (claimed == index)
            assert not verify_inclusion(leaf_hash(b"x"), index, size, proof, root)
            assert not verify_inclusion(leaves[index], index, size, [*proof, root], root)
            assert not proof or not verify_inclusion(leaves[index], index, size, proof[:-1], root)


def test_every_consistency_proof_of_small_trees_holds_and_of_no_other_tree() -> None:
    for second in range(1, 20):
        leaves = made(second)
        for first in range(1, second + 1):
            proof = hash_ranges(leaves, consistency_ranges(first, second))
            old, new = head(leaves[:first]), head(leaves)
            assert verify_consistency(first, second, proof, old, new)
            assert not verify_consistency(first, second, proof, leaf_hash(b"x"), new)
            assert not verify_consistency(first, second, proof, old, leaf_hash(b"x"))
            assert not verify_consistency(first, second, [*proof, old], old, new)


@given(st.integers(1, 2000), st.data())
@settings(max_examples=40, deadline=None)
def test_proofs_of_any_size_hold(size: int, data: st.DataObject) -> None:
    leaves = made(size)
    index = data.draw(st.integers(0, size - 1))
    first = data.draw(st.integers(1, size))
    asked = inclusion_ranges(index, size)
    together = hash_ranges(leaves, [*asked, *consistency_ranges(first, size)])
    root = grown(leaves).root()
    proof = together[: len(asked)]
    assert verify_inclusion(leaves[index], index, size, proof, root)
    old = grown(leaves[:first]).root()
    assert verify_consistency(first, size, together[len(asked) :], old, root)
    broken = [bytes([proof[0][0] ^ 1]) + proof[0][1:], *proof[1:]] if proof else [root]
    assert not verify_inclusion(leaves[index], index, size, broken, root)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_hashes_of_another_length_prove_nothing(size: int) -> None:
    odd, good = bytes(size), bytes(32)
    verify_proof.check_inclusion(good, 0, 1, [], good)
    for leaf, leaves, path in ((odd, 1, []), (good, 2, [odd])):
        root = node_hash(leaf, odd) if path else leaf
        with pytest.raises(verify_proof.Wrong, match="32 bytes"):
            verify_proof.check_inclusion(leaf, 0, leaves, path, root)
    with pytest.raises(verify_proof.Wrong, match="32 bytes"):
        verify_proof.check_consistency(1, good, 2, node_hash(good, odd), [odd])


def test_a_tree_of_a_size_that_its_peaks_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 leaves"):
        MerkleRange(3, [EMPTY_ROOT])
    with pytest.raises(ValueError, match="32 bytes"):
        MerkleRange(1, [b"short"])
    with pytest.raises(ValueError, match="end at 2"):
        hash_ranges(made(2), [(0, 3)])
    with pytest.raises(ValueError, match="leaf 2"):
        inclusion_ranges(2, 2)
    with pytest.raises(ValueError, match="from 3"):
        consistency_ranges(3, 2)
