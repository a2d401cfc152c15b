// torch.ops.sparsecore: codebook weights and Huffman coding. The product with activations is in spmm.cpp.
#include "torch/codebook.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <limits>
#include <span>

#include "sparsecore/huffman.h"
#include "torch/tensors.h"

namespace sparsecore::torch_binding {

CodebookView codebook_view(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  constexpr std::array<const char*, 5> kNames{"codebook", "codes", "gaps", "segment_ptr", "segment_zeros"};
  constexpr std::array<ScalarType, 5> kTypes{ScalarType::Float, ScalarType::Byte, ScalarType::Byte, ScalarType::Int,
                                             ScalarType::Byte};
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  check(tensors.size() == kNames.size() && sizes.size() == 6, "expected a codebook weight of 5 tensors and 6 sizes");
  for (size_t i = 0; i < kNames.size(); ++i) check_tensor(tensors[i], kNames[i], kTypes[i], 1);
  CodebookView view{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
  const auto is_inside = [](int64_t size, int64_t least, int64_t most) { return size >= least && size <= most; };
  check(is_inside(view.rows, 0, kMax) && is_inside(view.cols, 0, kMax) && is_inside(view.nnz, 0, kMax) &&
            is_inside(view.bits, 1, kMaxCodebookBits) && is_inside(view.gap_bits, 1, kMaxCodebookBits) &&
            is_inside(view.block_rows, 1, kMaxCodebookBlockRows),
        "expected a codebook weight with N, K and entries in [0, 2^31), fields of 1 to 8 bits and blocks of 1 to ",
        kMaxCodebookBlockRows, " rows");
  const auto field_bytes = [&](int64_t bits) { return (view.nnz * bits + 7) / 8 + kCodebookSlack; };
  check(tensors[0].numel() == int64_t(1) << view.bits && tensors[1].numel() == field_bytes(view.bits) &&
            tensors[2].numel() == field_bytes(view.gap_bits) && tensors[3].numel() == view.num_segments() + 1 &&
            tensors[4].numel() == view.num_segments(),
        "expected a codebook weight whose tensors fit together");
  view.codebook = tensors[0].const_data_ptr<float>();
  view.codes = tensors[1].const_data_ptr<uint8_t>();
  view.gaps = tensors[2].const_data_ptr<uint8_t>();
  view.segment_ptr = tensors[3].const_data_ptr<int32_t>();
  view.segment_zeros = tensors[4].const_data_ptr<uint8_t>();
  return view;
}

namespace {

Tensor codebook_multiplies(const Tensor& x_any, const std::vector<Tensor>& weight, const std::vector<int64_t>& sizes) {
  const CodebookView view = codebook_view(weight, sizes);
  const char* text = validate_codebook(view, {0, view.num_blocks()});
  if (text != nullptr) fail("invalid codebook weight: ", text, "; pack it again");
  const Tensor x = float_input(x_any);
  check(x.dim() >= 1 && x.size(x.dim() - 1) == view.cols, "expected x with K = ", view.cols, ", got shape ",
        shape_text(x));
  std::vector<int64_t> shape = shape_of(x);
  shape.pop_back();
  const Tensor counts = new_tensor(x, shape, ScalarType::Long);
  int64_t* out = counts.mutable_data_ptr<int64_t>();
  const float* row = x.const_data_ptr<float>();
  for (int64_t m = 0; m < counts.numel(); ++m) out[m] = count_codebook_multiplies(view, row + m * view.cols);
  return counts;
}

std::span<const uint8_t> bytes_of(const Tensor& tensor, const char* name) {
  check_tensor(tensor, name, ScalarType::Byte, 1);
  return {tensor.const_data_ptr<uint8_t>(), static_cast<size_t>(tensor.numel())};
}

Tensor huffman_lengths(const Tensor& counts) {
  check_tensor(counts, "counts", ScalarType::Long, 1);
  check(counts.numel() <= kMaxHuffmanSymbols, "expected counts of at most 256 symbols, got ", counts.numel());
  const std::span<const int64_t> numbers(counts.const_data_ptr<int64_t>(), static_cast<size_t>(counts.numel()));
  for (const int64_t count : numbers) {
    check(count >= 0 && count <= (int64_t(1) << 40), "expected counts in [0, 2^40], got ", count);
  }
  const Tensor lengths = new_tensor(counts, {counts.numel()}, ScalarType::Byte);
  sparsecore::huffman_lengths(numbers, lengths.mutable_data_ptr<uint8_t>());
  return lengths;
}

Tensor huffman_encode(const Tensor& symbols, const Tensor& lengths) {
  const auto text = bytes_of(symbols, "symbols"), code = bytes_of(lengths, "lengths");
  if (const char* problem = validate_huffman(code)) fail("invalid Huffman code: ", problem);
  std::vector<int64_t> counts(kMaxHuffmanSymbols);
  for (const uint8_t symbol : text) ++counts[symbol];
  for (size_t symbol = 0; symbol < counts.size(); ++symbol) {
    check(counts[symbol] == 0 || (symbol < code.size() && code[symbol] > 0), "expected a code for every symbol, got ",
          symbol, " without one; make lengths with huffman_lengths()");
  }
  counts.resize(code.size());
  const Tensor stream = new_tensor(symbols, {huffman_bytes(counts, code.data())}, ScalarType::Byte);
  sparsecore::huffman_encode(text, code, stream.mutable_data_ptr<uint8_t>());
  return stream;
}

Tensor huffman_decode(const Tensor& stream, const Tensor& lengths, int64_t num_symbols) {
  const auto bytes = bytes_of(stream, "stream"), code = bytes_of(lengths, "lengths");
  check(num_symbols >= 0 && num_symbols <= std::numeric_limits<int32_t>::max(),
        "expected a number of symbols in [0, 2^31), got ", num_symbols);
  const Tensor symbols = new_tensor(stream, {num_symbols}, ScalarType::Byte);
  const char* problem =
      sparsecore::huffman_decode(bytes, code, {symbols.mutable_data_ptr<uint8_t>(), static_cast<size_t>(num_symbols)});
  if (problem != nullptr) fail("invalid Huffman stream: ", problem);
  return symbols;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sparsecore, m) {
  m.def("codebook_multiplies(Tensor x, Tensor[] weight, int[] sizes) -> Tensor");
  m.def("huffman_lengths(Tensor counts) -> Tensor");
  m.def("huffman_encode(Tensor symbols, Tensor lengths) -> Tensor");
  m.def("huffman_decode(Tensor stream, Tensor lengths, int num_symbols) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparsecore, CPU, m) {
  m.impl("codebook_multiplies", TORCH_BOX(&codebook_multiplies));
  m.impl("huffman_lengths", TORCH_BOX(&huffman_lengths));
  m.impl("huffman_encode", TORCH_BOX(&huffman_encode));
  m.impl("huffman_decode", TORCH_BOX(&huffman_decode));
}

}  // namespace sparsecore::torch_binding
