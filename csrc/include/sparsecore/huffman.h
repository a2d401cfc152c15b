// Canonical Huffman codes for symbols of a byte.
//
// A code is its lengths alone: lengths[symbol] bits, 0 for a symbol that does not occur. Codes of one length are
// consecutive numbers in the order of their symbols, and go on from those of shorter ones (as in RFC 1951, 3.2.2). In
// the stream bits fill bytes from the lowest one up, the first bit of a code first; the last byte is filled up with
// zeros.
//
//   lengths 2 1 0 2      symbol 1: 0    symbol 0: 10    symbol 3: 11
//   symbols 1 0 3 1      bits 0 10 11 0 -> byte 0b00011010
//
// A single symbol has length 1 and its stream is empty: the number of symbols is known.
#pragma once

#include <cstdint>
#include <span>

namespace sparsecore {

inline constexpr int kMaxHuffmanBits = 15;
inline constexpr int64_t kMaxHuffmanSymbols = 256;

// Shortest mean length of all codes with no length above kMaxHuffmanBits: package-merge (Larmore and Hirschberg, A fast
// algorithm for optimal length-limited Huffman codes, JACM 1990). counts: how often each symbol occurs; at most
// kMaxHuffmanSymbols.
void huffman_lengths(std::span<const int64_t> counts, uint8_t* lengths);

// Bytes of the stream.
int64_t huffman_bytes(std::span<const int64_t> counts, const uint8_t* lengths);

// What is wrong with lengths, or null: each at most kMaxHuffmanBits, together a complete code or none.
const char* validate_huffman(std::span<const uint8_t> lengths);

// lengths are those of huffman_lengths() for counts of these symbols; out has huffman_bytes().
void huffman_encode(std::span<const uint8_t> symbols, std::span<const uint8_t> lengths, uint8_t* out);

// The inverse for symbols.size() symbols. Returns what is wrong, or null: lengths must be a complete code, and the
// stream exactly as long as the symbols take. Nothing else is read, whatever the bytes are; on an error symbols hold
// anything.
const char* huffman_decode(std::span<const uint8_t> stream, std::span<const uint8_t> lengths,
                           std::span<uint8_t> symbols);

}  // namespace sparsecore
