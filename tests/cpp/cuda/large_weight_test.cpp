// Weights [N, K] and activations [M, K] of more than 2^31 elements: the last block of each kernel, whose offsets in
// memory take more than 31 bits. Of arrays that large only the pages that it touches are there; a page in front of and
// behind them faults, and so does nearly every address that 32 bits got wrong.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "cuda/emulation.h"
#include "cuda/linear_int8.h"
#include "cuda/quantize_rows.h"
#include "cuda/spmm_csr.h"
#include "cuda/spmm_delta.h"
#include "cuda/spmm_fragment_wide.h"
#include "numbers.h"
#include "pack/delta.h"
#include "pack/fragment.h"
#include "sparsecore/pack.h"

namespace sparsecore::cuda {
namespace {

constexpr int64_t kMaxInt32 = 0x7fffffff;

// Zeros that take memory where they are written alone; they end at a page that nobody may touch.
template <class T>
class Zeros {
 public:
  explicit Zeros(int64_t size) : size_(size), page_(sysconf(_SC_PAGESIZE)) {
    const int64_t bytes = (size * int64_t(sizeof(T)) + page_ - 1) / page_ * page_;
    mapped_ = bytes + 2 * page_;
    void* map = mmap(nullptr, size_t(mapped_), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<uint8_t*>(map);
    if (mprotect(map_ + page_, size_t(bytes), PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }
  Zeros(const Zeros&) = delete;
  ~Zeros() { munmap(map_, size_t(mapped_)); }

  T* data() { return reinterpret_cast<T*>(map_ + mapped_ - page_) - size_; }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return size_; }

 private:
  int64_t size_, page_, mapped_ = 0;
  uint8_t* map_ = nullptr;
};

uint16_t half(double value) { return test::encode(Dtype::kFloat16, value); }
double number(uint16_t bits) { return double(test::decode(Dtype::kFloat16, bits)); }

// Rows of x that are so long that the last one begins past 2^31.
TEST(CudaLargeWeights, CsrRows) {
  constexpr int64_t M = 3, K = (int64_t(1) << 30) + 7, N = 2;
  static_assert((M - 1) * K > kMaxInt32);
  Zeros<uint16_t> x(M * K);
  for (int64_t m = 0; m < M; ++m) x[m * K + K - 1] = half(double(m + 1)), x[m * K] = half(0.5);
  const int32_t row_ptr[] = {0, 1, 3}, col_idx[] = {0, 5, int32_t(K - 1)};
  const float values[] = {2.0f, 100.0f, 4.0f};
  uint16_t y[M * N];
  const CsrArrays weight{N, K, 3, row_ptr, col_idx, values, Dtype::kFloat32};
  run_grid({1, 1}, kCsrThreads, 0, 1, [&] { spmm_csr_rows<Half, Float32>(weight, x.data(), M, {y}); });
  for (int64_t m = 0; m < M; ++m) {
    EXPECT_EQ(number(y[m * N]), 1.0);
    EXPECT_EQ(number(y[m * N + 1]), 4.0 * double(m + 1));
  }
}

// The same for columns: the last of K rows of pixels, and the last output.
TEST(CudaLargeWeights, CsrColumns) {
  constexpr int64_t kColumns = (int64_t(1) << 25) + 1, K = 66, N = 65;
  static_assert((K - 1) * kColumns > kMaxInt32 && N * kColumns > kMaxInt32);
  Zeros<uint16_t> x(K * kColumns), y(N * kColumns);
  x[K * kColumns - 1] = half(3.0);
  std::vector<int32_t> row_ptr(N + 1, 0);
  row_ptr.back() = 1;
  const int32_t col_idx[] = {K - 1};
  const float values[] = {2.0f};
  const CsrArrays weight{N, K, 1, row_ptr.data(), col_idx, values, Dtype::kFloat32};
  const Grid grid{N, (kColumns + kCsrThreads - 1) / kCsrThreads};
  run_one_block(grid, {N - 1, grid.y - 1}, kCsrThreads, 0, 1,
                [&] { spmm_csr_columns<Half, Float32>(weight, x.data(), 1, kColumns, {y.data()}); });
  EXPECT_EQ(number(y[N * kColumns - 1]), 6.0);
}

TEST(CudaLargeWeights, LinearInt8) {
  constexpr int64_t N = 40000, K = 65536, M = 2;
  static_assert((N - 1) * K > kMaxInt32);
  Zeros<int8_t> weight(N * K);
  std::vector<int8_t> x(size_t(M * K), 0);
  for (int64_t k = 0; k < K; k += 1001) weight[(N - 1) * K + k] = int8_t(k % 100), x[size_t(k)] = 3;
  int64_t sum = 0;
  for (int64_t k = 0; k < K; ++k) sum += int64_t(weight[(N - 1) * K + k]) * x[size_t(k)];
  const std::vector<float> scale(size_t(N), 1.0f);
  std::vector<float> y(size_t(M * N), -1.0f);
  const Int8Arrays arrays{N, K, weight.data(), scale.data()};
  Int8Activations input;
  input.M = M;
  input.x = x.data();
  const Int8Output out{{y.data()}};
  constexpr int kWarps = 2;
  run_one_block({N / kInt8Rows, 1}, {N / kInt8Rows - 1, 0}, kWarps * kWarp, kWarps * kInt8Rows * kInt8Tokens * 4, 1,
                [&] { linear_int8_rows<Float32, 1>(arrays, input, false, out); });
  EXPECT_EQ(double(y[N - 1]), double(sum));
  EXPECT_EQ(y.back(), 0.0f);
  EXPECT_EQ(y[0], -1.0f);
}

TEST(CudaLargeWeights, QuantizeRows) {
  constexpr int64_t M = 70000, K = 40000;
  static_assert((M - 1) * K > kMaxInt32);
  Zeros<uint16_t> x(M * K);
  Zeros<int8_t> out(M * K);
  Zeros<float> scales(M);
  x[M * K - 1] = half(-2.0);
  x[(M - 1) * K] = half(1.0);
  QuantizeRows args;
  args.M = M;
  args.K = K;
  args.dtype = Dtype::kFloat16;
  args.x = x.data();
  args.out = out.data();
  args.scales = scales.data();
  run_one_block({M, 1}, {M - 1, 0}, kWarp, 4, 1, [&] { quantize_rows_kernel<Half>(args); });
  EXPECT_EQ(out[M * K - 1], -127);
  EXPECT_EQ(out[(M - 1) * K], 64);
  EXPECT_EQ(scales[M - 1], 2.0f / 127.0f);
}

// A weight with entries in the last tile alone. Of the tiles before it there are no bytes, which the format does not
// allow and blocks that do not come there do not see.
struct LargeFragment {
  static constexpr int64_t kSize = 46400;  // 725 x 725 tiles
  static_assert(kSize * kSize > kMaxInt32);

  LargeFragment() : tile_ptr(size_t(shape.num_tiles()) + 1, 0), row_block(size_t(shape.row_tiles()), 0) {
    const FragmentShape one{kFragmentTile, kFragmentTile, 16};
    const std::vector<int32_t> row_ptr = [] {
      std::vector<int32_t> result(kFragmentTile + 1, 0);
      result.back() = 2;
      return result;
    }();
    const int32_t col_idx[] = {1, kFragmentTile - 1};
    const uint16_t values[] = {half(2.0), half(-3.0)};
    const CsrView<uint16_t> csr{kFragmentTile, kFragmentTile, 2, row_ptr.data(), col_idx, values};
    int32_t units[2] = {};
    count_fragment<uint16_t>(csr, one, {0, 1}, units);
    running_sum(units, 1);
    blob.resize(size_t(units[1]));
    fill_fragment<uint16_t>(csr, one, nullptr, {0, 1}, units, reinterpret_cast<uint8_t*>(blob.data()));
    tile_ptr.back() = units[1];
    block_ptr[0] = int32_t(shape.num_tiles() - 1);
    block_ptr[1] = int32_t(shape.num_tiles());
  }

  FragmentArrays arrays() const {
    return {kSize,
            kSize,
            16,
            int(blob.size()) * kFragmentUnit,
            tile_ptr.data(),
            reinterpret_cast<const uint8_t*>(blob.data()),
            int64_t(blob.size()) * kFragmentUnit,
            block_ptr,
            row_block.data(),
            1,
            nullptr};
  }

  const FragmentShape shape{kSize, kSize, 16};
  std::vector<int32_t> tile_ptr, row_block;
  std::vector<uint4> blob;
  int32_t block_ptr[2] = {};
};

// By the kernels for few and for many rows of x.
TEST(CudaLargeWeights, Fragment) {
  const LargeFragment weight;
  const FragmentArrays arrays = weight.arrays();
  constexpr int64_t K = LargeFragment::kSize, N = K;
  const auto check = [&](int tokens, auto decode) {
    Zeros<uint16_t> x(int64_t(tokens) * K);
    for (int64_t m = 0; m < tokens; ++m) x[m * K + K - 1] = half(double(m % 50));
    Zeros<float> partial(fragment_slots(1, weight.shape.row_tiles()) * kFragmentTile * tokens);
    Zeros<uint16_t> y(int64_t(tokens) * N);
    const int64_t last = weight.shape.row_tiles() - 1;
    decode(x.data(), partial.data(), y.data(), last);
    for (int64_t m = 0; m < tokens; ++m) EXPECT_EQ(number(y[m * N + N - 1]), -3.0 * double(m % 50));
  };
  check(kTokenTile, [&](const uint16_t* x, float* partial, uint16_t* y, int64_t last) {
    const FragmentShared shared{1, 1, arrays.stage_bytes};
    run_grid({1, 1}, kWarp, shared.bytes(), 1,
             [&] { spmm_fragment_decode<Values16<Half>, 1, false>(arrays, x, false, kTokenTile, partial); });
    run_one_block({last + 1, 1}, {last, 0}, kWarp, 0, 1,
                  [&] { spmm_fragment_finish<Half, FloatFinish, 1>(arrays, partial, FloatFinish{kTokenTile, {y}}); });
  });
  constexpr int kMany = kWideTokens<1>;
  check(kMany, [&](const uint16_t* x, float* partial, uint16_t* y, int64_t last) {
    run_grid({1, 1}, kFragmentThreads, WideShared{arrays.stage_bytes}.bytes(), 1,
             [&] { spmm_fragment_wide<Values16<Half>, 1, false>(arrays, x, false, kMany, partial); });
    run_one_block({last + 1, 1}, {last, 0}, kWarp, 0, 1, [&] {
      spmm_fragment_finish<Half, FloatFinish, kWideWarps>(arrays, partial, FloatFinish{kMany, {y}});
    });
  });
}

TEST(CudaLargeWeights, ExpandFragment) {
  const LargeFragment weight;
  constexpr int64_t K = LargeFragment::kSize;
  Zeros<uint16_t> dense(K * K);
  const FragmentArrays arrays = weight.arrays();
  const int64_t tiles = weight.shape.num_tiles();
  const int64_t shared = (kStages - 1) * arrays.stage_bytes + kFragmentReadBytes;
  run_one_block({tiles, 1}, {tiles - 1, 0}, kWarp, shared, 1,
                [&] { fragment_expand<Values16<Half>>(arrays, dense.data()); });
  EXPECT_EQ(number(dense[K * K - 1]), -3.0);
  EXPECT_EQ(number(dense[K * K - kFragmentTile + 1]), 2.0);
  EXPECT_EQ(number(dense[K * K - 2]), 0.0);
}

// An entry in the last column of the last row, and one in the middle.
TEST(CudaLargeWeights, Delta) {
  constexpr int64_t N = 70000, K = 40000, kLast = 4;
  static_assert((N - 1) * K > kMaxInt32);
  const DeltaShape shape{N, K};
  std::vector<int32_t> row_ptr(size_t(N) + 1, 0);
  row_ptr.back() = 2;
  const int32_t col_idx[] = {9000, int32_t(K - 1)};
  const uint16_t values[] = {half(2.0), half(-3.0)};
  const CsrView<uint16_t> csr{N, K, 2, row_ptr.data(), col_idx, values};
  std::vector<int32_t> quad_ptr(size_t(shape.units()) + 1, 0);
  count_delta(csr, shape, {0, N}, quad_ptr.data());
  const int64_t quads = running_sum(quad_ptr.data(), shape.units());
  std::vector<uint32_t> codes(size_t(quads), 0);
  std::vector<uint2> stored(size_t(quads), uint2{});
  fill_delta(csr, shape, {0, N}, quad_ptr.data(), reinterpret_cast<uint8_t*>(codes.data()),
             reinterpret_cast<uint16_t*>(stored.data()));
  // One block for the last rows of each panel: what is before them has no entries.
  DeltaArrays arrays;
  arrays.rows = N;
  arrays.cols = K;
  arrays.quad_ptr = quad_ptr.data();
  arrays.codes = reinterpret_cast<const uint8_t*>(codes.data());
  arrays.values = stored.data();
  arrays.quads = quads;
  arrays.num_blocks = 1;

  Zeros<uint16_t> dense(N * K);
  const int64_t warps = (shape.units() + 1) / 2;  // one for two units
  for (const int64_t panel : {int64_t(9000 / kDeltaPanel), shape.panels() - 1}) {
    const int64_t unit = panel * N + N - 1;
    run_one_block({warps, 1}, {unit % warps, 0}, kWarp, 0, 1,
                  [&] { delta_expand<Half, DeltaValues16<Half>>(arrays, dense.data()); });
  }
  EXPECT_EQ(number(dense[N * K - 1]), -3.0);
  EXPECT_EQ(number(dense[(N - 1) * K + 9000]), 2.0);
  EXPECT_EQ(number(dense[N * K - 2]), 0.0);

  constexpr int64_t M = 2;
  std::vector<uint16_t> x(size_t(M * K), 0), y(size_t(M * N), 0);
  x[size_t(K - 1)] = half(1.0);
  x[size_t(K + 9000)] = half(1.0);
  Zeros<float> partial(shape.panels() * M * N);
  for (int64_t panel = 0; panel < shape.panels(); ++panel) {
    const int64_t end = (panel + 1) * N;
    const int32_t block_ptr[] = {int32_t(end - kLast), int32_t(end)};
    arrays.block_ptr = block_ptr;
    run_grid({1, 1}, kWarp, delta_shared_bytes(K, M), 1, [&] {
      spmm_delta_multiply<Half, DeltaValues16<Half>, M>(arrays, x.data(), M, partial.data(), {y.data()});
    });
  }
  run_one_block({(M * N + kWarp - 1) / kWarp, 1}, {(N - 1) / kWarp, 0}, kWarp, 0, 1,
                [&] { spmm_delta_finish<Half>(arrays, M, partial.data(), {y.data()}); });
  EXPECT_EQ(number(y[N - 1]), -3.0);
}

}  // namespace
}  // namespace sparsecore::cuda
