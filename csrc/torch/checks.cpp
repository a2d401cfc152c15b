#include "torch/checks.h"

#include <array>
#include <limits>

#include "sparsecore/pack.h"
#include "torch/recording.h"

namespace sparsecore::torch_binding {
namespace {

template <class T>
constexpr ScalarType kScalarType = ScalarType::Undefined;
template <>
constexpr ScalarType kScalarType<float> = ScalarType::Float;
template <>
constexpr ScalarType kScalarType<int8_t> = ScalarType::Char;

}  // namespace

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d > 0 ? ", " : "") + std::to_string(tensor.size(d));
  return text + "]";
}

bool float_dtype(ScalarType type, Dtype& dtype) {
  switch (type) {
    case ScalarType::Float:
      dtype = Dtype::kFloat32;
      return true;
    case ScalarType::BFloat16:
      dtype = Dtype::kBFloat16;
      return true;
    case ScalarType::Half:
      dtype = Dtype::kFloat16;
      return true;
    default:
      return false;
  }
}

void check_tensor(const Tensor& tensor, const char* name, ScalarType dtype, int64_t dim) {
  check(tensor.is_cpu(), "expected ", name, " on the CPU; move it with .cpu()");
  check(tensor.scalar_type() == dtype, "expected ", dtype_name(dtype), " ", name, ", got ",
        dtype_name(tensor.scalar_type()), "; convert it with .to(torch.", dtype_name(dtype), ")");
  check(dim < 0 || tensor.dim() == dim, "expected ", name, " with ", dim, " dimensions, got shape ",
        shape_text(tensor));
  check(tensor.is_contiguous(), "expected contiguous ", name, "; call .contiguous()");
  keep_for_replay(tensor);
}

namespace {

// What CSR and block CSR have in common; dim: dimensions of values.
template <class T, class View>
void fill_csr_view(View& view, const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t dim,
                   int64_t cols) {
  check_tensor(row_ptr, "row_ptr", ScalarType::Int, 1);
  check_tensor(col_idx, "col_idx", ScalarType::Int, 1);
  check_tensor(values, "values", kScalarType<T>, dim);
  check(row_ptr.numel() >= 1, "expected row_ptr with N + 1 entries, got none");
  check(col_idx.numel() == values.size(0), "expected as many col_idx as values, got ", col_idx.numel(), " and ",
        values.size(0));
  check(cols <= std::numeric_limits<int32_t>::max(), "expected K < 2^31, got ", cols);
  view.rows = row_ptr.numel() - 1;
  view.cols = cols;
  view.nnz = col_idx.numel();
  view.row_ptr = row_ptr.const_data_ptr<int32_t>();
  view.col_idx = col_idx.const_data_ptr<int32_t>();
  view.values = values.const_data_ptr<T>();
}

}  // namespace

template <class T>
CsrView<T> csr_view(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols) {
  CsrView<T> view;
  fill_csr_view<T>(view, row_ptr, col_idx, values, 1, cols);
  return view;
}
template CsrView<float> csr_view<float>(const Tensor&, const Tensor&, const Tensor&, int64_t);
template CsrView<int8_t> csr_view<int8_t>(const Tensor&, const Tensor&, const Tensor&, int64_t);

BlockCsrView<float> block_csr_view(const Tensor& row_ptr, const Tensor& col_idx, const Tensor& values, int64_t cols) {
  BlockCsrView<float> view;
  fill_csr_view<float>(view, row_ptr, col_idx, values, 2, cols);
  view.block_rows = values.size(1);
  check(view.block_rows == 4 || view.block_rows == 8, "expected values in blocks of 4 or 8 rows, got ",
        shape_text(values));
  check(view.rows <= std::numeric_limits<int32_t>::max() / view.block_rows, "expected N < 2^31");
  view.rows *= view.block_rows;
  return view;
}

PanelView<float> panel_view(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  constexpr std::array<const char*, 6> kNames{"run_ptr", "entry_ptr", "run_row", "run_length", "panel_col", "values"};
  constexpr std::array<ScalarType, 6> kTypes{ScalarType::Int,  ScalarType::Int,  ScalarType::Byte,
                                             ScalarType::Byte, ScalarType::Byte, ScalarType::Float};
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  check(tensors.size() == kNames.size() && sizes.size() == 4, "expected a panel weight of 6 tensors and 4 sizes");
  for (size_t i = 0; i < kNames.size(); ++i) check_tensor(tensors[i], kNames[i], kTypes[i], 1);
  PanelView<float> view;
  view.rows = sizes[0];
  view.cols = sizes[1];
  view.block_rows = sizes[2];
  view.panel_cols = sizes[3];
  check(view.rows >= 0 && view.rows <= kMax && view.cols >= 0 && view.cols <= kMax && view.block_rows >= 1 &&
            view.block_rows <= kMaxBlockRows && view.panel_cols >= 1 && view.panel_cols <= kMaxPanelCols,
        "expected a panel weight with N and K in [0, 2^31), blocks of 1 to 256 rows and panels of 1 to 255 columns");
  view.num_runs = tensors[2].numel();
  view.nnz = tensors[5].numel();
  check(tensors[0].numel() == view.num_segments() + 1 && tensors[1].numel() == view.num_segments() + 1 &&
            tensors[3].numel() == view.num_runs && tensors[4].numel() == view.nnz,
        "expected a panel weight whose tensors fit together");
  view.run_ptr = tensors[0].const_data_ptr<int32_t>();
  view.entry_ptr = tensors[1].const_data_ptr<int32_t>();
  view.run_row = tensors[2].const_data_ptr<uint8_t>();
  view.run_length = tensors[3].const_data_ptr<uint8_t>();
  view.panel_col = tensors[4].const_data_ptr<uint8_t>();
  view.values = tensors[5].const_data_ptr<float>();
  return view;
}

BitmapView bitmap_view(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  check(tensors.size() == 3 && sizes.size() == 2, "expected a bitmap weight of 3 tensors and 2 sizes");
  BitmapView view;
  check(float_dtype(tensors[2].scalar_type(), view.dtype), "expected float32, float16 or bfloat16 values, got ",
        dtype_name(tensors[2].scalar_type()));
  check_tensor(tensors[0], "block_ptr", ScalarType::Int, 1);
  check_tensor(tensors[1], "masks", ScalarType::Short, 2);
  check_tensor(tensors[2], "values", tensors[2].scalar_type(), 1);
  view.rows = sizes[0];
  view.cols = sizes[1];
  check(view.rows >= 0 && view.rows <= kMax && view.cols >= 0 && view.cols <= kMax,
        "expected a bitmap weight with N and K in [0, 2^31)");
  view.nnz = tensors[2].numel() - kBitmapSlack;
  check(tensors[0].numel() == view.num_blocks() + 1 && tensors[1].size(0) == view.num_blocks() &&
            tensors[1].size(1) == view.cols && view.nnz >= 0,
        "expected a bitmap weight whose tensors fit together");
  view.block_ptr = tensors[0].const_data_ptr<int32_t>();
  view.masks = static_cast<const uint16_t*>(tensors[1].const_data_ptr());
  view.values = tensors[2].const_data_ptr();
  return view;
}

PlanesView planes_view(const std::vector<Tensor>& tensors, const std::vector<int64_t>& sizes) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  check(tensors.size() == 2 && sizes.size() == 2, "expected a weight of bit planes of 2 tensors and 2 sizes");
  check_tensor(tensors[0], "words", ScalarType::Int, 4);
  check_tensor(tensors[1], "scale", ScalarType::Float, 2);
  PlanesView view;
  view.rows = sizes[0];
  view.cols = sizes[1];
  view.planes = tensors[0].size(2);
  check(view.rows >= 0 && view.rows <= kMax && view.cols >= 0 && view.cols <= kMax,
        "expected a weight of bit planes with N and K in [0, 2^31)");
  check((view.planes == 1 || view.planes == 2) && tensors[0].size(0) == view.num_blocks() &&
            tensors[0].size(1) == view.num_words() && tensors[0].size(3) == kPlaneBlockRows &&
            tensors[1].size(0) == view.planes && tensors[1].size(1) == view.num_blocks() * kPlaneBlockRows,
        "expected a weight of bit planes whose tensors fit together");
  view.words = reinterpret_cast<const uint32_t*>(tensors[0].const_data_ptr<int32_t>());
  view.scale = tensors[1].const_data_ptr<float>();
  return view;
}

Epilogue make_epilogue(const std::optional<Tensor>& bias, const std::string& activation, int64_t rows) {
  // In the order of enum class Activation.
  constexpr std::array<const char*, 8> kNames{"none", "relu",      "relu6",   "gelu",
                                              "silu", "hardswish", "sigmoid", "hardsigmoid"};
  Epilogue epilogue;
  if (bias) epilogue.bias = row_vector(*bias, "bias", rows);
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (activation == kNames[i]) {
      epilogue.activation = static_cast<Activation>(i);
      return epilogue;
    }
  }
  fail("expected activation none, relu, relu6, gelu, silu, hardswish, sigmoid or hardsigmoid, got '", activation, "'");
}

const float* row_vector(const Tensor& tensor, const char* name, int64_t rows) {
  check_tensor(tensor, name, ScalarType::Float, 1);
  check(tensor.numel() == rows, "expected ", name, " of shape [", rows, "], got ", shape_text(tensor));
  return tensor.const_data_ptr<float>();
}

}  // namespace sparsecore::torch_binding
