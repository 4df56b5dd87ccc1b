//! Repacking is lossless: it is a permutation of bits, read off from one-hot inputs and then
//! confirmed on random ones.

use std::collections::HashSet;

use epiphyte::DType;
use epiphyte::quant::BLOCK;
use proptest::prelude::*;

use super::repack;

/// Blocks of a piece.
const PIECE: usize = 64;

/// Where a bit goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Place {
    Words(usize),
    Scales(usize),
}

fn set_bits(words: &[u32]) -> impl Iterator<Item = usize> {
    let set = words.iter().enumerate().filter(|(_, w)| **w != 0);
    set.flat_map(|(i, w)| (0..32).filter(move |bit| w >> bit & 1 == 1).map(move |bit| 32 * i + bit))
}

fn places(words: &[u32], scales: &[u32]) -> HashSet<Place> {
    set_bits(words).map(Place::Words).chain(set_bits(scales).map(Place::Scales)).collect()
}

fn bits(bytes: &[u8]) -> impl Iterator<Item = bool> {
    bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1))
}

fn bytes(dtype: DType, blocks: usize) -> usize {
    dtype.bytes(blocks * BLOCK).unwrap()
}

/// The place of every bit of a piece.
fn permutation(dtype: DType) -> Vec<Place> {
    let mut blocks = vec![0; bytes(dtype, PIECE)];
    let mut found = Vec::new();
    for bit in 0..8 * blocks.len() {
        blocks[bit / 8] = 1 << (bit % 8);
        let (words, scales) = repack(dtype, &blocks, 0);
        blocks[bit / 8] = 0;
        let places = places(&words, &scales);
        assert_eq!(places.len(), 1, "{dtype:?} bit {bit} goes to {places:?}");
        found.extend(places);
    }
    found
}

#[test]
fn every_bit_of_random_blocks_keeps_its_place() {
    for dtype in DType::ALL {
        let permutation = permutation(dtype);
        let distinct: HashSet<Place> = permutation.iter().copied().collect();
        assert_eq!(distinct.len(), permutation.len(), "{dtype:?}: two bits share a place");
        let unit = dtype.block_len().div_ceil(BLOCK);
        let input = (1..=PIECE / unit)
            .prop_flat_map(|n| prop::collection::vec(any::<u8>(), bytes(dtype, n * unit)));
        let config =
            ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() };
        proptest!(config, |(blocks in input)| {
            let (words, scales) = repack(dtype, &blocks, u32::MAX);
            let expected = bits(&blocks).zip(&permutation).filter(|(set, _)| *set).map(|(_, place)| *place).collect();
            prop_assert_eq!(places(&words, &scales), expected, "{:?}", dtype);
        });
    }
}

#[test]
fn pieces_join_to_the_whole() {
    for dtype in DType::ALL {
        let unit = dtype.block_len().div_ceil(BLOCK);
        let blocks: Vec<u8> =
            (0..bytes(dtype, 2 * PIECE + 3 * unit)).map(|i| (i * 167 % 251) as u8).collect();
        let (mut words, mut scales) = (Vec::new(), Vec::new());
        for piece in blocks.chunks(bytes(dtype, PIECE)) {
            let (w, s) = repack(dtype, piece, u32::MAX);
            words.extend(w);
            scales.extend(s);
        }
        assert_eq!((words, scales), repack(dtype, &blocks, 0), "{dtype:?}");
    }
}
