// The table of one instruction set: include inside its target region, after the wrapper that defines Simd.
#pragma once

#include "kernels/copy.h"
#include "simd/wrapper.h"

namespace sparsecore::test {
namespace {

template <class S>
struct WrapperText {
  static void load(Dtype dtype, const void* from, float* to) {
    with_dtype(dtype, [=](auto tag) { S::store(to, S::load(static_cast<const Element<decltype(tag)>*>(from))); });
  }
  static void load_n(Dtype dtype, const void* from, int n, float* to) {
    with_dtype(dtype, [=](auto tag) { S::store(to, S::load_n(static_cast<const Element<decltype(tag)>*>(from), n)); });
  }
  static void store(Dtype dtype, const float* from, void* to) {
    with_dtype(dtype, [=](auto tag) { S::store(static_cast<Element<decltype(tag)>*>(to), S::load(from)); });
  }
  static void store_n(Dtype dtype, const float* from, void* to, int n) {
    with_dtype(dtype, [=](auto tag) { S::store_n(static_cast<Element<decltype(tag)>*>(to), S::load(from), n); });
  }
  static void even(const float* a, const float* b, float* to) { S::store(to, S::even(S::load(a), S::load(b))); }
  static void odd(const float* a, const float* b, float* to) { S::store(to, S::odd(S::load(a), S::load(b))); }
  static void expand_fma(uint32_t bits, const float* packed, const float* b, const float* c, float* to) {
    const auto lanes = S::lanes_of(bits);
    S::store(to, S::fma_on(lanes, S::expand(S::load(packed), lanes), S::load(b), S::load(c)));
  }
  static int64_t count(uint32_t bits) { return S::count(bits); }
  static void lookup(const float* table, const uint32_t* from, int shifts, float* to) {
    if constexpr (S::kTableBits > 0) {
      auto index = S::load_index(from);
      for (int i = 0; i < shifts; ++i) index = S::template shift_right<S::kTableBits>(index);
      S::store(to, S::lookup(S::load(table), index));
    }
  }
  static void copy_in(Dtype dtype, const void* from, float* to, int64_t n) {
    with_dtype(dtype, [=](auto tag) { copy_numbers<S>(static_cast<const Element<decltype(tag)>*>(from), to, n); });
  }
  static void copy_out(Dtype dtype, const float* from, void* to, int64_t n) {
    with_dtype(dtype, [=](auto tag) { copy_numbers<S>(from, static_cast<Element<decltype(tag)>*>(to), n); });
  }
  static void strided(Dtype dtype, const void* from, int64_t stride, float* to, int64_t n) {
    with_dtype(dtype,
               [=](auto tag) { copy_strided<S>(static_cast<const Element<decltype(tag)>*>(from), stride, to, n); });
  }
  static void transpose_in(Dtype dtype, const void* from, int64_t ld_from, int64_t rows, int64_t cols, float* to,
                           int64_t ld_to) {
    with_dtype(dtype, [=](auto tag) {
      transpose_block<S>(static_cast<const Element<decltype(tag)>*>(from), ld_from, rows, cols, to, ld_to);
    });
  }
  static void transpose_out(Dtype dtype, const float* from, int64_t ld_from, int64_t rows, int64_t cols, void* to,
                            int64_t ld_to) {
    with_dtype(dtype, [=](auto tag) {
      transpose_block<S>(from, ld_from, rows, cols, static_cast<Element<decltype(tag)>*>(to), ld_to);
    });
  }

  static Wrapper table(Isa isa) {
    return {isa,   S::kLanes, load,          load_n,  store,    store_n, even,         odd,          expand_fma,
            count, lookup,    S::kTableBits, copy_in, copy_out, strided, transpose_in, transpose_out};
  }

 private:
  template <class Tag>
  using Element = typename Tag::type;
};

}  // namespace
}  // namespace sparsecore::test
