#include "sparsecore/huffman.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace sparsecore {
namespace {

// --- lengths ---

// A symbol, or a package of two lighter ones; `symbols` has each as often as it is in there.
struct Item {
  int64_t weight;
  std::vector<uint8_t> symbols;
};

std::vector<Item> merge(const std::vector<Item>& leaves, const std::vector<Item>& packages) {
  std::vector<Item> merged(leaves);
  merged.insert(merged.end(), packages.begin(), packages.end());
  std::stable_sort(merged.begin(), merged.end(), [](const Item& a, const Item& b) { return a.weight < b.weight; });
  return merged;
}

std::vector<Item> pair_up(const std::vector<Item>& items) {
  std::vector<Item> packages;
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    Item package{items[i].weight + items[i + 1].weight, items[i].symbols};
    package.symbols.insert(package.symbols.end(), items[i + 1].symbols.begin(), items[i + 1].symbols.end());
    packages.push_back(std::move(package));
  }
  return packages;
}

// --- codes ---

struct Codes {
  std::array<uint16_t, kMaxHuffmanBits + 1> count{};  // codes of each length
  std::array<uint8_t, kMaxHuffmanSymbols> symbols{};  // by length, then symbol
  int64_t num_symbols = 0;
  int max_length = 0;
};

// What is wrong with lengths, or null.
const char* read_lengths(std::span<const uint8_t> lengths, Codes& codes) {
  if (lengths.size() > static_cast<size_t>(kMaxHuffmanSymbols)) return "more than 256 symbols";
  int64_t used = 0;  // of 2^kMaxHuffmanBits
  for (const uint8_t length : lengths) {
    if (length > kMaxHuffmanBits) return "a code of more than 15 bits";
    if (length == 0) continue;
    ++codes.count[length];
    ++codes.num_symbols;
    codes.max_length = std::max<int>(codes.max_length, length);
    used += int64_t(1) << (kMaxHuffmanBits - length);
  }
  const bool is_single = codes.num_symbols == 1 && codes.max_length == 1;
  if (codes.num_symbols > 0 && !is_single && used != int64_t(1) << kMaxHuffmanBits)
    return "lengths of no complete code";
  std::array<int64_t, kMaxHuffmanBits + 2> next{};
  for (size_t length = 1; length <= kMaxHuffmanBits; ++length) next[length + 1] = next[length] + codes.count[length];
  for (size_t symbol = 0; symbol < lengths.size(); ++symbol) {
    if (lengths[symbol] > 0) codes.symbols[static_cast<size_t>(next[lengths[symbol]]++)] = static_cast<uint8_t>(symbol);
  }
  return nullptr;
}

// The symbol whose code begins in the low bits of window, and its length; 0 if its code has more than max_bits. A
// complete code has one for all bits.
int decode_one(const Codes& codes, uint64_t window, int max_bits, uint8_t& symbol) {
  int64_t code = 0, first = 0, index = 0;
  for (int length = 1; length <= max_bits; ++length, window >>= 1) {
    code |= static_cast<int64_t>(window & 1);
    const int64_t count = codes.count[static_cast<size_t>(length)];
    if (code - first < count) {
      symbol = codes.symbols[static_cast<size_t>(index + code - first)];
      return length;
    }
    index += count;
    first = (first + count) << 1;
    code <<= 1;
  }
  return 0;
}

// Up to four symbols that the next kTableBits bits hold, so that one look-up decodes them all; none if the first one's
// code is longer.
constexpr int kTableBits = 11;
struct Entry {
  std::array<uint8_t, 4> symbols{};
  uint8_t count = 0, bits = 0;
};

std::vector<Entry> make_table(const Codes& codes) {
  std::vector<Entry> table(size_t(1) << kTableBits);
  for (size_t window = 0; window < table.size(); ++window) {
    Entry& entry = table[window];
    while (entry.count < entry.symbols.size()) {
      const int length = decode_one(codes, window >> entry.bits, kTableBits - entry.bits, entry.symbols[entry.count]);
      if (length == 0) break;
      ++entry.count;
      entry.bits = static_cast<uint8_t>(entry.bits + length);
    }
  }
  return table;
}

// Bits from a place on; zeros past the end.
uint64_t peek(std::span<const uint8_t> stream, int64_t bit) {
  const size_t byte = static_cast<size_t>(bit / 8);
  uint64_t window = 0;
  if (byte < stream.size()) std::memcpy(&window, stream.data() + byte, std::min(sizeof(window), stream.size() - byte));
  return window >> (bit % 8);
}

}  // namespace

void huffman_lengths(std::span<const int64_t> counts, uint8_t* lengths) {
  std::fill(lengths, lengths + counts.size(), uint8_t(0));
  std::vector<Item> leaves;
  for (size_t symbol = 0; symbol < counts.size(); ++symbol) {
    if (counts[symbol] > 0) leaves.push_back({counts[symbol], {static_cast<uint8_t>(symbol)}});
  }
  if (leaves.size() == 1) lengths[leaves[0].symbols[0]] = 1;
  if (leaves.size() <= 1) return;
  leaves = merge(leaves, {});
  std::vector<Item> items = leaves;
  for (int level = 1; level < kMaxHuffmanBits; ++level) items = merge(leaves, pair_up(items));
  for (size_t i = 0; i < 2 * leaves.size() - 2; ++i) {
    for (const uint8_t symbol : items[i].symbols) ++lengths[symbol];
  }
}

int64_t huffman_bytes(std::span<const int64_t> counts, const uint8_t* lengths) {
  int64_t bits = 0, num_symbols = 0;
  for (size_t symbol = 0; symbol < counts.size(); ++symbol) {
    bits += counts[symbol] * lengths[symbol];
    num_symbols += lengths[symbol] > 0;
  }
  return num_symbols <= 1 ? 0 : (bits + 7) / 8;
}

const char* validate_huffman(std::span<const uint8_t> lengths) {
  Codes codes;
  return read_lengths(lengths, codes);
}

void huffman_encode(std::span<const uint8_t> symbols, std::span<const uint8_t> lengths, uint8_t* out) {
  Codes codes;
  if (read_lengths(lengths, codes) != nullptr || codes.num_symbols <= 1) return;
  std::array<uint32_t, kMaxHuffmanSymbols> bits{};  // first bit lowest
  uint32_t code = 0;
  size_t index = 0;
  for (int length = 1; length <= codes.max_length; ++length, code <<= 1) {
    for (int i = 0; i < codes.count[static_cast<size_t>(length)]; ++i, ++code) {
      uint32_t reversed = 0;
      for (int bit = 0; bit < length; ++bit) reversed |= (code >> bit & 1) << (length - 1 - bit);
      bits[codes.symbols[index++]] = reversed;
    }
  }
  uint64_t window = 0;
  int filled = 0;
  for (const uint8_t symbol : symbols) {
    window |= uint64_t(bits[symbol]) << filled;
    filled += lengths[symbol];
    for (; filled >= 8; filled -= 8, window >>= 8) *out++ = static_cast<uint8_t>(window);
  }
  if (filled > 0) *out = static_cast<uint8_t>(window);
}

const char* huffman_decode(std::span<const uint8_t> stream, std::span<const uint8_t> lengths,
                           std::span<uint8_t> symbols) {
  Codes codes;
  if (const char* text = read_lengths(lengths, codes)) return text;
  if (codes.num_symbols <= 1) {
    if (codes.num_symbols == 0 && !symbols.empty()) return "symbols without a code";
    std::fill(symbols.begin(), symbols.end(), codes.symbols[0]);
    return stream.empty() ? nullptr : "a stream that is longer than its symbols";
  }
  const std::vector<Entry> table = make_table(codes);
  const int64_t num_bits = 8 * static_cast<int64_t>(stream.size());
  int64_t bit = 0;
  size_t done = 0;
  constexpr int kLookups = 57 / kTableBits;  // from one load
  // Each look-up writes four symbols, of which the last ones may be overwritten by the next.
  while (done + 4 * kLookups <= symbols.size() && bit / 8 + 8 <= static_cast<int64_t>(stream.size())) {
    uint64_t window;
    std::memcpy(&window, stream.data() + bit / 8, sizeof(window));
    window >>= bit % 8;
    for (int i = 0; i < kLookups; ++i) {
      const Entry& entry = table[window & ((uint64_t(1) << kTableBits) - 1)];
      if (entry.count == 0) {  // a rare symbol; the rest of the window may be too short for what follows
        bit += decode_one(codes, peek(stream, bit), kMaxHuffmanBits, symbols[done++]);
        break;
      }
      std::memcpy(&symbols[done], entry.symbols.data(), entry.symbols.size());
      done += entry.count;
      bit += entry.bits;
      window >>= entry.bits;
    }
  }
  for (; done < symbols.size() && bit < num_bits; ++done) {
    bit += decode_one(codes, peek(stream, bit), kMaxHuffmanBits, symbols[done]);
  }
  if (done < symbols.size() || bit > num_bits) return "a stream that is shorter than its symbols";
  if (num_bits - bit >= 8 || peek(stream, bit) != 0) return "a stream that is longer than its symbols";
  return nullptr;
}

}  // namespace sparsecore
