// What the tests of both float operations, spmm and conv2d, ask for beside the shapes.
#pragma once

#include <cstdint>
#include <ostream>
#include <type_traits>
#include <variant>
#include <vector>

#include "harness.h"
#include "numbers.h"
#include "oracle.h"
#include "packed.h"

namespace sparsecore::test {

// Everything that has no influence on sizes, at random.
template <class Shape>
void randomize_options(Shape& shape, Random& random) {
  shape.activation = random.pick(kAllActivations);
  shape.has_bias = random.chance(0.5);
  shape.guard = random.chance(0.5) ? Guard::kAfter : Guard::kBefore;
  shape.dtype = random.pick({Dtype::kFloat32, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16});
  shape.has_residual = random.chance(0.4);
}

template <class Shape>
void print_options(std::ostream& out, const Shape& shape) {
  out << ", fill " << shape.fill << ", " << dtype_name(shape.dtype) << ", " << activation_name(shape.activation)
      << (shape.has_bias ? ", bias" : "") << (shape.has_residual ? ", residual" : "") << ", specials "
      << shape.special_chance << ", packing " << shape.packing
      << (shape.guard == Guard::kAfter ? ", guard after" : ", guard before");
}

// A number of the dtype, or now and then a NaN or an infinity.
inline float random_number(Random& random, Dtype dtype, double special_chance) {
  return static_cast<float>(round_to(dtype, double(random.number_or_special(special_chance))));
}

inline std::vector<float> random_numbers(Random& random, Dtype dtype, int64_t size, double special_chance) {
  std::vector<float> numbers(static_cast<size_t>(size));
  for (float& number : numbers) number = random_number(random, dtype, special_chance);
  return numbers;
}

// Rows of the weight that a kernel of the tables computes together: 1, or 4 or 8 for block CSR.
template <class... Args>
int64_t random_csr_block_rows(const AnyKernel<Args...>& any, Random& random) {
  const auto visit = [&](const auto& kernel) -> int64_t {
    using View = decltype(args_of(kernel).weight);
    return std::is_same_v<View, BlockCsrView<float>> ? random.pick<int64_t>({4, 8}) : 1;
  };
  return std::visit(visit, any.row);
}

// The arguments for tiles that so many threads share.
template <class Args>
Args shared_by(int64_t threads, Args args) {
  if constexpr (requires { args.threads; }) args.threads = threads;
  return args;
}

// The same work in one call, in random parts, and on threads: equal bits.
template <class Problem, class Any>
void check_splits(const Problem& problem, const Any& any, Random& random) {
  const int64_t num_threads = random.integer(2, 8);
  const Numbers whole = problem.run(any);
  const Numbers parts = problem.run_with(any, [&](const auto& kernel, const auto& given, int64_t num_rows) {
    const auto args = shared_by(num_threads, given);
    run_split(kernel, args, {0, num_rows}, {0, kernel.num_tiles(args)}, random);
  });
  ASSERT_TRUE(same_bits(whole, parts));
  const Numbers threads = problem.run_with(any, [&](const auto& kernel, const auto& given, int64_t num_rows) {
    run_threads(kernel, shared_by(random.integer(1, num_threads), given), num_rows, num_threads);
  });
  ASSERT_TRUE(same_bits(whole, threads));
}

}  // namespace sparsecore::test
